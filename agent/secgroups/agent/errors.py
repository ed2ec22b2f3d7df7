"""Errors of the agent, one class for each thing that a caller can do differently.

AgentError
├── ConfigError            the agent was started with settings that can't work: correct them
├── UnenforceableError     an object of the controller that this agent can't enforce: it is rejected, the last good version stays
├── BaseVersionError       a patch does not fit what is held: ask for a full state again
├── StreamError            the stream does not fit what was told before: subscribe again and ask for a full state
├── EngineBrokenError      an update failed when part of it was in force: all is denied, start anew with the last good state
├── HeldBackError          a snapshot would remove more servers than may go at once: stay with what is in force and ask again later
├── EnforcementError       the kernel does not take what is to be in force: what was enforced before still is, try again
│   └── ListingError       what the kernel holds can't be read: take it for damaged
├── CacheError             the cached state on disk is damaged: it is set aside and the agent starts empty
├── FlowFileError          the flow table of an earlier process can't be used: it is said so and a new one begun
├── PacketError            a request for a verdict that is no packet at all: correct the named field
├── FilterError            a filter with a value that nothing can have: correct the named field
├── UntoldError            a watch for verdicts that the kernel does not tell of: ask for what it tells
└── TooManyTapsError       as many watch verdicts as may: try again when one of them has ended
"""

from __future__ import annotations


class AgentError(Exception):
    """Root of everything that the agent raises on purpose."""


class ConfigError(AgentError):
    """Settings that can't work. The message names the setting, the value and the bound."""


class UnenforceableError(AgentError):
    """An object of the controller that can't be enforced."""


class BaseVersionError(AgentError):
    """A patch whose base is not what is held. ``held`` is 0 if nothing is."""

    def __init__(self, *, group_id: str, held: int, needed: int) -> None:
        super().__init__(f"address set {group_id}: patch for version {needed}, held is {held}")
        self.group_id = group_id
        self.held = held
        self.needed = needed


class StreamError(AgentError):
    """A message of the controller that does not fit what it said before."""


class EngineBrokenError(AgentError):
    """An update failed half way, most likely for want of memory. The message says which and why."""


class HeldBackError(AgentError):
    """A whole snapshot that was not applied, because it would remove too many servers."""


class EnforcementError(AgentError):
    """The kernel does not take what is to be in force; the message says why."""


class ListingError(EnforcementError):
    """What the kernel holds can't be read."""


class CacheError(AgentError):
    """The cached state on disk is damaged; the message says why."""


class FlowFileError(AgentError):
    """The file of a flow table can't be gone on with; the message says why."""


class PacketError(AgentError):
    """A request for a verdict that is no packet. ``field`` names what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class FilterError(AgentError):
    """A filter with a value that nothing can have. ``field`` names what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UntoldError(AgentError):
    """Verdicts that nobody can tell of; the message says which, and what can be told."""


class TooManyTapsError(AgentError):
    """One more would be too many."""

    def __init__(self, taps_max: int) -> None:
        super().__init__(f"{taps_max} watch the verdicts of this agent, the most allowed is {taps_max}")
