"""Settings of the streams to agents."""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.controller.errors import ConfigError

_BOUNDS_S = {"heartbeat_s": (0.01, 3600.0), "coalesce_s": (0.0, 1.0), "hello_timeout_s": (0.01, 3600.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """Times in seconds. ConfigError, which names the setting and its bounds, for one that can't work.

    An idle stream says something every ``heartbeat_s``; three of them without an acknowledgement end it. Changes that come within
    ``coalesce_s`` of the last message share the next one; one that comes later is sent at once. A stream on which no hello comes
    within ``hello_timeout_s`` is ended.
    """

    heartbeat_s: float = 10.0
    coalesce_s: float = 0.005
    hello_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS_S.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} {value} is not in {least:g}..{most:g}")
