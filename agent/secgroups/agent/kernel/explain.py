"""What the kernel would do with a packet, and why: the reference engine's answer, with the kernel's connection in its table.

The kernel can't be asked for grounds. But it enforces the same rules, and what it knows beyond them is one connection: that of the
packet, or that which an ICMP error is about.
"""

from __future__ import annotations

from secgroups.agent.explanation import Decision, explained
from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    TCP,
    Explanation,
    Fragment,
    Packet,
    QuotedPacket,
    Reason,
    Verdict,
)
from secgroups.agent.kernel.connections import Ends
from secgroups.agent.kernel.flows import KernelFlows
from secgroups.agent.reference import ReferenceEngine
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.screening import is_icmp_error
from secgroups.agent.settings import EngineSettings
from secgroups.agent.tcp import REOPENABLE, Segment, segment_of
from secgroups.agent.tracking import Flow, find_request

# Rows of the verdict table: before the first, no flow is looked at; in the other one it decides.
_FIRST_STEP_WITH_FLOWS, _STEP_OF_FLOWS = 7, 9


def explain_in_kernel(packet: Packet, ruleset: Ruleset, flows: KernelFlows, now_ns: int) -> Explanation:
    """Return what ``ruleset``, which the kernel enforces, says of ``packet``. EnforcementError if the kernel does not tell.

    A later fragment is told as one whose first was not seen: the kernel puts fragments together before it judges.
    """
    engine = ReferenceEngine(EngineSettings(essential_services=flows.essential_services), now_ns)
    engine.apply(_concerning(packet.server, ruleset), now_ns)
    ends = _find_ends(packet)
    flow = flows.find(ends, packet.server) if ends is not None and packet.server in ruleset.servers else None
    if flow is not None:
        engine.flows.insert(flow)
    explanation = engine.explain(packet, now_ns)
    if flow is None or explanation.step < _FIRST_STEP_WITH_FLOWS or not _stays_revoked(packet, flow):
        return explanation
    return explained(packet, Decision(verdict=Verdict(reason=Reason.REVOKED), step=_STEP_OF_FLOWS), ruleset, None)


def _stays_revoked(packet: Packet, flow: Flow) -> bool:
    """Whether the kernel takes ``packet`` for one of ``flow``, which is revoked, or about it.

    The engine judges as new a SYN of the opener, and an ICMP error; the kernel only what conntrack begins a connection with.
    """
    if packet.protocol != TCP or packet.direction is not flow.opening.direction:
        return flow.revoked
    return flow.revoked and not (segment_of(packet.tcp_flags) is Segment.SYN and flow.state in REOPENABLE)


def _concerning(server: str, ruleset: Ruleset) -> RulesetUpdate:
    """Return the part of ``ruleset`` that decides about ``server``, as a snapshot."""
    binding = ruleset.servers.get(server)
    held = [ruleset.groups[group_id] for group_id in binding.group_ids if group_id in ruleset.groups] if binding else []
    remotes = {rule.remote for group in held for rule in group.rules if isinstance(rule.remote, str)}
    return RulesetUpdate(
        revision=ruleset.revision,
        snapshot=True,
        servers=(binding,) if binding else (),
        groups=tuple(held),
        sets=tuple(ruleset.sets[group_id] for group_id in remotes if group_id in ruleset.sets),
    )


def _find_ends(packet: Packet) -> Ends | None:
    """Return what names the connection that decides about ``packet``, None if none can."""
    if packet.fragment is Fragment.LATER:
        return None
    named: Packet | QuotedPacket | None = packet.quoted if is_icmp_error(packet) else packet
    if named is None or not _can_be_tracked(named):
        return None
    if named is not packet and named.source != packet.destination:
        # An error that is not sent to whom it is about: conntrack does not know it either.
        return None
    has_ports = named.protocol in PROTOCOLS_WITH_PORTS
    return Ends(
        protocol=named.protocol,
        source=named.source,
        destination=named.destination,
        source_port=named.source_port if has_ports else 0,
        destination_port=named.destination_port if has_ports else 0,
        icmp=(named.icmp_id, named.icmp_type, named.icmp_code if isinstance(named, Packet) else 0),
    )


def _can_be_tracked(named: Packet | QuotedPacket) -> bool:
    """Whether conntrack could know it: it refuses to be asked about what it never keeps."""
    version = named.source.version
    if version != named.destination.version or named.protocol == (ICMPV6 if version == 4 else ICMP):
        return False
    return named.protocol not in (ICMP, ICMPV6) or find_request(named.protocol, named.icmp_type) is not None
