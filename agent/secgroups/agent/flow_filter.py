"""Which flows somebody wants to see."""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.agent.errors import FilterError
from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS
from secgroups.agent.ruleset import Network
from secgroups.agent.tcp import FlowState
from secgroups.agent.tracking import Flow

REVOKED = "REVOKED"
STATES = (*(state.value for state in FlowState), REVOKED)

_PORT_MAX = 65_535
_PROTOCOL_MAX = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFilter:
    """What a flow must be like; a field that is empty or None asks for nothing. Raises ``FilterError``.

    ``server`` is ``project/id``, ``port`` the destination port of the opening packet, ``protocol`` a number, of which ``ICMP``
    (1) stands for ICMP on IPv4 and ICMPv6 on IPv6, as in rules. ``state`` is one of ``STATES``: a revoked flow is ``REVOKED``,
    not in the state in which it would resume. ``rule_id`` is the id of the rule that last allowed the flow, or how it begins.
    """

    server: str = ""
    remote: Network | None = None
    port: int | None = None
    protocol: int | None = None
    state: str = ""
    rule_id: str = ""

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= _PORT_MAX:
            raise FilterError("port", f"{self.port} is not in 1..{_PORT_MAX}")
        if self.protocol is not None and not 0 <= self.protocol <= _PROTOCOL_MAX:
            raise FilterError("protocol", f"{self.protocol} is not in 0..{_PROTOCOL_MAX}")
        if self.protocol == ICMPV6:
            raise FilterError("protocol", f"{ICMPV6} is written as {ICMP}, which stands for ICMP and ICMPv6")
        if self.port is not None and self.protocol is not None and self.protocol not in PROTOCOLS_WITH_PORTS:
            raise FilterError("port", f"protocol {self.protocol} has no ports")
        if self.state and self.state not in STATES:
            raise FilterError("state", f"{self.state[:64]!r} is not one of: {', '.join(STATES)}")

    def matches(self, flow: Flow) -> bool:
        """Whether ``flow`` is one of those."""
        key = flow.key
        return (
            self.server in ("", key.server)
            and (self.protocol is None or self.protocol == (ICMP if key.protocol == ICMPV6 else key.protocol))
            and (self.port is None or self.port == flow.opening.port)
            and (not self.state or self.state == state_name(flow))
            and flow.rule_id.startswith(self.rule_id)
            and (self.remote is None or key.remote in self.remote)
        )


EVERY_FLOW = FlowFilter()


def state_name(flow: Flow) -> str:
    """Return the state of ``flow`` as people see it: one of ``STATES``."""
    return REVOKED if flow.revoked else flow.state.value
