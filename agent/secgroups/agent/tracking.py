"""Flows: what makes two packets belong to one, how long it lives, and what a packet leaves behind in it.

A flow is a value; the table swaps it for the next one. So a verdict can be worked out with all its consequences without
anything happening.

Where the contract is silent:

- A TCP flow counts as answered when its handshake is complete, or both ends were heard if it was picked up mid-stream: a
  SYN/ACK alone shows nothing, since a spoofed SYN gets one too. Any other flow is answered by the first packet the other way.
- A flow that resumes starts its time-out anew.
- An ICMP request type is one of its own family: 128 and 139 are requests of ICMPv6 only, 8, 13, 15 and 17 of ICMP only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from secgroups.agent.effective import EffectiveRule, Opening
from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, TCP, UDP, Address, Direction, Packet, QuotedPacket, TcpFlags
from secgroups.agent.tcp import CONNECTED, TCP_TIMEOUTS_S, FlowState

NS_PER_S = 1_000_000_000
# In place of the time of something that whoever tracks the flow does not remember.
NOT_KNOWN_NS = -1

_UDP_UNANSWERED_S = 30
_UDP_ANSWERED_S = 120
_ICMP_S = 30
_OTHER_S = 600
_REVOKED_UDP_S = 120
_REVOKED_TCP_S = 300
_REVOKED_OTHER_S = 30

# Request type to reply type.
_REPLY_OF = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMPV6: {128: 129, 139: 140}}
_REQUEST_OF = {protocol: {reply: request for request, reply in pairs.items()} for protocol, pairs in _REPLY_OF.items()}


class FlowKey(NamedTuple):
    """What packets of one flow have in common, seen from the server.

    For ICMP, ``local_port`` is the identifier, ``remote_port`` the request type, and ``opened_by`` the direction of the
    requests, without which a request the other way would fall into the same flow; it is None for everything else. Python
    seeds the hash of ``server`` and of addresses at random for each process.
    """

    server: str
    protocol: int
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    opened_by: Direction | None


def is_icmp_request(protocol: int, icmp_type: int) -> bool:
    """Whether it is an ICMP message that has a reply."""
    return icmp_type in _REPLY_OF.get(protocol, ())


def is_icmp_reply(protocol: int, icmp_type: int) -> bool:
    """Whether it is an ICMP message that only a request can have caused."""
    return icmp_type in _REQUEST_OF.get(protocol, ())


def find_request(protocol: int, icmp_type: int) -> int | None:
    """Return the type of the request that an ICMP reply answers, or a request's own; None for a message that is neither."""
    return icmp_type if is_icmp_request(protocol, icmp_type) else _REQUEST_OF.get(protocol, {}).get(icmp_type)


def find_key(server: str, direction: Direction, packet: Packet | QuotedPacket) -> FlowKey | None:
    """Return the key of the flow that ``packet``, going in ``direction``, would belong to; None for ICMP without reply."""
    protocol = packet.protocol
    here, there = (packet.destination, packet.source) if direction is Direction.INGRESS else (packet.source, packet.destination)
    if protocol in (ICMP, ICMPV6):
        if is_icmp_request(protocol, packet.icmp_type):
            return FlowKey(server, protocol, here, packet.icmp_id, there, packet.icmp_type, direction)
        request = _REQUEST_OF[protocol].get(packet.icmp_type)
        return None if request is None else FlowKey(server, protocol, here, packet.icmp_id, there, request, direction.opposite)
    ports = (packet.source_port, packet.destination_port) if protocol in PROTOCOLS_WITH_PORTS else (0, 0)
    local_port, remote_port = ports if direction is Direction.EGRESS else (ports[1], ports[0])
    return FlowKey(server, protocol, here, local_port, there, remote_port, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One tracked flow. Times are monotonic nanoseconds; ``opened_ns`` and ``seen_ns`` may be ``NOT_KNOWN_NS`` in the kernel's.

    ``opening`` is by what it is judged again after a change; ``epoch`` is that of the server when it last was, ``rule_id`` and
    ``group_id`` name the rule that last allowed it. A revoked flow keeps its ``state`` to resume in.
    """

    key: FlowKey
    opening: Opening
    state: FlowState
    rule_id: str
    group_id: str
    epoch: int
    opened_ns: int
    seen_ns: int
    deadline_ns: int
    answered: bool = False
    revoked: bool = False
    opener_packets: int = 0
    opener_bytes: int = 0
    answerer_packets: int = 0
    answerer_bytes: int = 0

    def is_over(self, now_ns: int) -> bool:
        """Whether its life has ended."""
        return now_ns >= self.deadline_ns

    def has_packets(self, direction: Direction) -> bool:
        """Whether a packet of ``direction`` was let through."""
        return (self.opener_packets if direction is self.opening.direction else self.answerer_packets) > 0


def open_flow(packet: Packet, key: FlowKey, opening: Opening, rule: EffectiveRule, *, epoch: int, now_ns: int) -> Flow:
    """Return the flow that ``packet`` opens; ``opening`` may go the other way if it is picked up mid-stream."""
    state = FlowState.UNANSWERED
    if packet.protocol == TCP:
        state = FlowState.SYN_SENT if packet.tcp_flags & TcpFlags.SYN else FlowState.ESTABLISHED
    flow = Flow(
        key=key,
        opening=opening,
        state=state,
        rule_id=rule.rule.id,
        group_id=rule.group_id,
        epoch=epoch,
        opened_ns=now_ns,
        seen_ns=now_ns,
        deadline_ns=now_ns,
    )
    return renewed(counted(flow, packet, now_ns), now_ns)


def counted(flow: Flow, packet: Packet, now_ns: int) -> Flow:
    """Return ``flow`` after ``packet`` of it was let through: seen, counted, perhaps answered by it; its deadline is as it was."""
    if packet.direction is flow.opening.direction:
        flow = replace(flow, seen_ns=now_ns, opener_packets=flow.opener_packets + 1, opener_bytes=flow.opener_bytes + packet.length)
    else:
        flow = replace(
            flow,
            seen_ns=now_ns,
            answerer_packets=flow.answerer_packets + 1,
            answerer_bytes=flow.answerer_bytes + packet.length,
        )
    if flow.answered or not (flow.opener_packets and flow.answerer_packets):
        return flow
    if flow.key.protocol == TCP:
        return replace(flow, answered=flow.state in CONNECTED)
    return replace(flow, answered=True, state=FlowState.ANSWERED)


def renewed(flow: Flow, now_ns: int) -> Flow:
    """Return ``flow`` with the whole time-out of its state before it."""
    protocol = flow.key.protocol
    return replace(flow, deadline_ns=now_ns + (revoked_s(protocol) if flow.revoked else timeout_s(protocol, flow.state)) * NS_PER_S)


def timeout_s(protocol: int, state: FlowState) -> int:
    """Return for how long a flow in ``state`` lives without a packet, in seconds."""
    if protocol == TCP:
        return TCP_TIMEOUTS_S[state]
    if protocol == UDP:
        return _UDP_ANSWERED_S if state is FlowState.ANSWERED else _UDP_UNANSWERED_S
    return _ICMP_S if protocol in (ICMP, ICMPV6) else _OTHER_S


def revoked_s(protocol: int) -> int:
    """Return for how long a revoked flow lives without a packet of its opener, in seconds."""
    return {TCP: _REVOKED_TCP_S, UDP: _REVOKED_UDP_S}.get(protocol, _REVOKED_OTHER_S)


def rejudged(flow: Flow, rule: EffectiveRule | None, *, epoch: int, now_ns: int) -> Flow:
    """Return ``flow`` as judged in ``epoch``: allowed by ``rule``, or revoked if that is None.

    A flow found revoked lives on for its time as such, one that is allowed again resumes in its old state.
    """
    if rule is None:
        found = replace(flow, epoch=epoch, revoked=True)
        return found if flow.revoked else renewed(found, now_ns)
    found = replace(flow, epoch=epoch, revoked=False, rule_id=rule.rule.id, group_id=rule.group_id)
    return renewed(found, now_ns) if flow.revoked else found
