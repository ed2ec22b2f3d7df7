"""How the kernel enforces, chosen once at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from secgroups.agent.errors import ConfigError
from secgroups.agent.kernel.marks import MarkLayout

# As the port on which the agent answers.
DEFAULT_LOG_GROUP = 7710
_LOG_GROUP_MAX = 65_535


class Told(IntEnum):
    """Of which packets the kernel tells; each step includes those before it."""

    NOTHING = 0
    DENIALS = 1
    OPENINGS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """``ports`` gives the interface of a server (``project/id``) that is found by it.

    ``log_group`` is the nflog group through which the kernel tells of packets while somebody watches. ConfigError if it can't be.
    """

    marks: MarkLayout = field(default_factory=MarkLayout)
    essential_services: bool = True
    ports: Mapping[str, str] = field(default_factory=dict)
    log_group: int = DEFAULT_LOG_GROUP

    def __post_init__(self) -> None:
        # Group 0 is where other programs listen that were told nothing else.
        if not 1 <= self.log_group <= _LOG_GROUP_MAX:
            raise ConfigError(f"kernel_log_group {self.log_group} is not in 1..{_LOG_GROUP_MAX}")

    def bridged_ports(self) -> list[str]:
        """Return the interfaces of servers that are ports of a bridge now; rules see packets that cross it as the bridge's own."""
        return sorted(name for name in self.ports.values() if Path("/sys/class/net", name, "brport").exists())
