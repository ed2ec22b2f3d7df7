"""Which verdicts somebody wants to see, of those that a tap has taken."""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.agent.errors import FilterError
from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, Action, Address, Reason
from secgroups.agent.ruleset import Network
from secgroups.agent.tap import VerdictEvent

_PORT_MAX = 65_535
_DENIALS = frozenset({Action.DENY})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictFilter:
    """What a verdict and its packet must be like; a field that is empty or None asks for nothing. Raises ``FilterError``.

    ``actions`` left empty become those of ``reasons``, and denials if there are none either. ``sources``, ``destinations`` and
    ``either`` (one of the two ends) are prefixes, ``ports`` those of either end. ``protocol`` is a number, of which ``ICMP`` (1)
    stands for ICMP on IPv4 and ICMPv6 on IPv6. ``rule_ids`` are ids of rules, or how they begin.
    """

    actions: frozenset[Action] = frozenset()
    reasons: frozenset[Reason] = frozenset()
    servers: frozenset[str] = frozenset()
    sources: tuple[Network, ...] = ()
    destinations: tuple[Network, ...] = ()
    either: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()
    protocol: int | None = None
    rule_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.actions:
            object.__setattr__(self, "actions", frozenset(reason.action for reason in self.reasons) or _DENIALS)
        for reason in sorted(self.reasons):
            if reason.action not in self.actions:
                raise FilterError("reasons", f"{reason.name} is a reason to {reason.action.name}, which is not asked for")
        for port in sorted(self.ports):
            if not 1 <= port <= _PORT_MAX:
                raise FilterError("ports", f"{port} is not in 1..{_PORT_MAX}")
        if self.ports and self.protocol is not None and self.protocol not in PROTOCOLS_WITH_PORTS:
            raise FilterError("ports", f"protocol {self.protocol} has no ports")

    def matches(self, event: VerdictEvent) -> bool:
        """Whether the verdict is one of those."""
        packet, verdict = event.packet, event.verdict
        return (
            verdict.action in self.actions
            and (not self.reasons or verdict.reason in self.reasons)
            and (not self.servers or packet.server in self.servers)
            and (self.protocol is None or self.protocol == (ICMP if packet.protocol == ICMPV6 else packet.protocol))
            and (not self.ports or packet.source_port in self.ports or packet.destination_port in self.ports)
            and (not self.rule_ids or verdict.rule_id.startswith(self.rule_ids))
            and (not self.sources or _is_in(packet.source, self.sources))
            and (not self.destinations or _is_in(packet.destination, self.destinations))
            and (not self.either or _is_in(packet.source, self.either) or _is_in(packet.destination, self.either))
        )


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
