"""What every world judges packets on: a clock that only the case moves, and the engine's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Explanation, Packet, Verdict
from secgroups.agent.settings import EngineSettings
from secgroups.lab.cases.model import Settings

_NS_PER_S = 1_000_000_000
# Monotonic, so it may begin anywhere; not at 0, where a mistaken zero would pass for a time.
_BEGIN_NS = 1_000 * _NS_PER_S
# Of two packets one is the later.
_PACKET_NS = 1_000


@dataclass
class Clock:
    """Monotonic nanoseconds. A packet takes one microsecond, everything else no time at all."""

    now_ns: int = _BEGIN_NS

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``."""
        self.now_ns += round(seconds * _NS_PER_S)

    def judge(self, firewall: Firewall, packet: Packet) -> tuple[Explanation, Verdict]:
        """Explain the packet, then decide it, at one and the same time."""
        self.now_ns += _PACKET_NS
        return firewall.explain(packet, self.now_ns), firewall.decide(packet, self.now_ns)


def engine_settings(settings: Settings) -> EngineSettings:
    """Return the engine's settings: what the case says, else the defaults."""
    return EngineSettings(**{name: value for name, value in asdict(settings).items() if value is not None})
