"""What is remembered of an agent while the controller runs, whether it is connected or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secgroups.controller.channel import AgentChannel
from secgroups.controller.obstacles import Obstacle
from secgroups.controller.stream_messages import HeldBack, Hello, ObjectKey, Rejected, Report


@dataclass(slots=True, kw_only=True)
class AgentRecord:
    """An agent that has connected. ``behind_since`` counts while it is not connected: the oldest revision that it has missed.

    ``heard_clock_us`` is when it was last heard by a clock that nobody sets; ``last_heard_us`` tells people the time of day.
    """

    hello: Hello
    channel: AgentChannel | None = None
    behind_since: int | None = None
    applied_revision: int = 0
    last_heard_us: int = 0
    heard_clock_us: int = 0
    connected_us: int = 0
    rejected: Mapping[ObjectKey, Rejected] = field(default_factory=dict)
    report: Report | None = None
    held_back: HeldBack | None = None

    def progress(self, channel: AgentChannel) -> None:
        """Note what the agent has in force now. What it held back is forgotten with the first step that it takes."""
        self.applied_revision = channel.applied_revision
        self.rejected = channel.rejected
        if channel.has_begun:
            self.held_back = None

    def miss(self, revision: int) -> None:
        """Note that a revision touched it while it was away."""
        self.behind_since = revision if self.behind_since is None else min(self.behind_since, revision)

    @property
    def pending_since(self) -> int | None:
        """The oldest revision that touched it and is not in force on it; None if it is up to date."""
        return self.channel.pending_since if self.channel else self.behind_since


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What is known of an agent at one moment. ``boot_id`` is empty and the times are None if it has not connected.

    ``lag_since_us`` is when the oldest change was committed that is not in force on it; None if none is, or it is not known.
    """

    agent_id: str
    connected: bool
    boot_id: str = ""
    version: str = ""
    host: str = ""
    applied_revision: int = 0
    pending_revisions: int = 0
    last_heard_us: int | None = None
    heard_clock_us: int | None = None
    connected_us: int | None = None
    rejected: tuple[Rejected, ...] = ()
    server_count: int = 0
    report: Report | None = None
    held_back: HeldBack | None = None
    lag_since_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """An agent that does not have a revision in force, and what stands against that."""

    agent_id: str
    connected: bool
    applied_revision: int
    obstacle: Obstacle

    @property
    def reason(self) -> str:
        return self.obstacle.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many agents there are that guard a server or are connected, and how many of them are what.

    ``oldest_lag_since_us`` is when the oldest change was committed that one of them does not have in force; None if there is none.
    """

    known: int = 0
    connected: int = 0
    lagging: int = 0
    rejecting: int = 0
    holding_back: int = 0
    oldest_lag_since_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How it stands with a revision: it is in force when nobody lags. ``commit_to_in_force_us`` is None where it is not known."""

    agents_touched: int
    lagging: tuple[Lag, ...]
    commit_to_in_force_us: int | None = None
