"""How the kernel enforces, chosen once at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secgroups.agent.kernel.marks import MarkLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """``ports`` gives the interface of a server (``project/id``) that is found by it."""

    marks: MarkLayout = field(default_factory=MarkLayout)
    essential_services: bool = True
    ports: Mapping[str, str] = field(default_factory=dict)

    def bridged_ports(self) -> list[str]:
        """Return the interfaces of servers that are ports of a bridge now; rules see packets that cross it as the bridge's own."""
        return sorted(name for name in self.ports.values() if Path("/sys/class/net", name, "brport").exists())
