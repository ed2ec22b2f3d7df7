"""The verdict table, row by row, worked out without changing anything.

``judge`` says what a packet gets, which row decided, and what follows for the flow table. ``decide`` of an engine lets that
happen, ``explain`` does not: this is why they can't differ.

Where the contract is silent:

- An ICMP error is related only if the flow saw a packet of the quoted direction and that was sent by whom the error is
  addressed to. It is not counted in the flow and does not renew it.
- A flow that is found revoked by a SYN of its opener is judged as new at once (``NO_RULE``), by any other packet it is
  ``REVOKED``, a SYN of the answering end that would have reopened a closed flow included.
- A flow that was found revoked before is not judged again by a SYN of its opener: that opens a new flow if a rule allows it now.
- A SYN that is judged as new and denied leaves the old flow as it is; a revoked one it renews, being a packet of the opener.
  One that is allowed takes the place of the old flow and so always has room.
- Mid-stream TCP is a segment that the transition table takes for established: an ACK without SYN, FIN and RST. It is judged
  in its own direction first, then as the answer to a flow of the other direction; the flow's opening direction is the one
  whose rules allowed it, by which it is judged again after a change.
- Reasons that name no deciding rule: all denials but ``REVOKED``, or what a later fragment inherits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from secgroups.agent.effective import Opening
from secgroups.agent.flow import TCP, Direction, Fragment, Packet, Reason, Verdict
from secgroups.agent.screening import (
    find_essential_service,
    find_fault,
    find_rogue_service,
    find_source_fault,
    is_for_many,
    is_icmp_error,
)
from secgroups.agent.table import FlowTable, Guarded
from secgroups.agent.tcp import REOPENABLE, FlowState, Segment, Unmoved, next_state, segment_of
from secgroups.agent.tracking import (
    Flow,
    FlowKey,
    counted,
    find_key,
    is_icmp_reply,
    open_flow,
    rejudged,
    renewed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict, the row (1 to 13) that decided, and what follows.

    ``flow`` is the value to be stored of the flow concerned, None if none is; a flow that is opened by ``verdict`` is new,
    any other is held. ``victims`` go to make room for it. ``group_id`` is that of the deciding rule, ``grounds`` what rows 3,
    4 and 9 found.
    """

    verdict: Verdict
    step: int
    group_id: str = ""
    flow: Flow | None = None
    victims: tuple[FlowKey, ...] = ()
    grounds: str = ""


def _denied(reason: Reason, step: int, grounds: str = "", flow: Flow | None = None) -> Judgement:
    return Judgement(verdict=Verdict(reason=reason), step=step, grounds=grounds, flow=flow)


def _by_flow(reason: Reason, step: int, flow: Flow, stored: Flow | None) -> Judgement:
    return Judgement(verdict=Verdict(reason=reason, rule_id=flow.rule_id), step=step, group_id=flow.group_id, flow=stored)


def grounds_without_place(packet: Packet, state: FlowState, *, from_opener: bool) -> str:
    """Return why row 9 denies a TCP segment."""
    sender = "opener" if from_opener else "answering end"
    return f"{_segment_name(packet)} of the {sender} has no place in state {state.value}"


def grounds_without_flow(packet: Packet) -> str:
    """Return why row 10 denies a packet."""
    return f"{_segment_name(packet)} belongs to no flow" if packet.protocol == TCP else "ICMP reply to no request"


def _segment_name(packet: Packet) -> str:
    segment = segment_of(packet.tcp_flags)
    return f"TCP {segment.value}" if segment else "TCP segment"


def judge(packet: Packet, table: FlowTable, *, servers: Collection[str], essential: bool, now_ns: int) -> Judgement:
    """Return what ``packet`` gets at ``now_ns``. ``servers`` are those guarded, ``essential`` is the switch of row 4."""
    if packet.server not in servers:
        return _denied(Reason.UNKNOWN_SERVER, 1)
    guarded = table.guarded[packet.server]
    if guarded.ruleset.groups is None:
        return _denied(Reason.NO_RULESET, 2)
    return (
        _screened(packet, guarded, essential=essential)
        or _Case(packet, table, guarded, servers=len(servers), now_ns=now_ns).judged()
    )


def _screened(packet: Packet, guarded: Guarded, *, essential: bool) -> Judgement | None:
    """Rows 3 to 6."""
    addresses = guarded.ruleset.addresses
    rogue = find_rogue_service(packet)
    service = find_essential_service(packet, addresses) if essential else ""
    fault = find_fault(packet) or ("" if rogue or service else find_source_fault(packet.source))
    if fault:
        return _denied(Reason.INVALID_PACKET, 3, fault)
    if rogue:
        return _denied(Reason.ROGUE_SERVICE, 4, rogue)
    if service:
        return Judgement(verdict=Verdict(reason=Reason.ESSENTIAL), step=4, grounds=service)
    if packet.direction is Direction.EGRESS and packet.source not in addresses:
        return _denied(Reason.SPOOFED_SOURCE, 5)
    if packet.direction is Direction.INGRESS and packet.destination not in addresses and not is_for_many(packet.destination):
        return _denied(Reason.NOT_LOCAL, 6)
    return None


class _Case:
    """One packet before the table, from row 7 on."""

    def __init__(self, packet: Packet, table: FlowTable, guarded: Guarded, *, servers: int, now_ns: int) -> None:
        self._packet = packet
        self._table = table
        self._ruleset = guarded.ruleset
        self._epoch = guarded.epoch
        self._servers = servers
        self._now_ns = now_ns
        self._segment = segment_of(packet.tcp_flags) if packet.protocol == TCP else None

    def judged(self) -> Judgement:
        packet = self._packet
        if packet.fragment is Fragment.LATER:
            return self._as_first_fragment()
        if is_icmp_error(packet):
            return self._about_flow()
        key = find_key(packet.server, packet.direction, packet)
        flow = self._table.find(key, self._now_ns) if key else None
        return self._of_flow(flow) if flow else self._of_no_flow(key)

    def _as_first_fragment(self) -> Judgement:
        """Row 7."""
        first = self._table.fragments.find(self._packet, epoch=self._epoch, now_ns=self._now_ns)
        if first is None:
            return _denied(Reason.UNKNOWN_FRAGMENT, 7)
        return Judgement(verdict=first.verdict, step=7, group_id=first.group_id)

    def _about_flow(self) -> Judgement:
        """Row 8; an ICMP error has no reply and so is in no flow itself."""
        flow = self._find_quoted()
        if flow is None:
            return self._of_no_flow(None)
        found = self._brought_up(flow)
        changed = None if found is flow else found
        if found.revoked:
            return replace(self._of_no_flow(None), flow=changed)
        return _by_flow(Reason.RELATED, 8, found, changed)

    def _find_quoted(self) -> Flow | None:
        """Return the live flow in which the receiver of this error sent what it quotes."""
        packet, quoted = self._packet, self._packet.quoted
        if quoted is None or quoted.source != packet.destination:
            return None
        key = find_key(packet.server, packet.direction.opposite, quoted)
        flow = self._table.find(key, self._now_ns) if key else None
        return flow if flow and flow.has_packets(packet.direction.opposite) else None

    def _brought_up(self, flow: Flow) -> Flow:
        """Return ``flow`` as judged in the epoch of now."""
        if flow.epoch == self._epoch:
            return flow
        return rejudged(flow, self._ruleset.find_rule(flow.opening), epoch=self._epoch, now_ns=self._now_ns)

    def _of_flow(self, flow: Flow) -> Judgement:
        """Row 9."""
        from_opener = self._packet.direction is flow.opening.direction
        opener_syn = from_opener and self._segment is Segment.SYN
        if flow.revoked and opener_syn:
            return self._reopening(flow)
        flow = self._brought_up(flow)
        if flow.revoked:
            if opener_syn:
                return self._reopening(flow)
            return _by_flow(Reason.REVOKED, 9, flow, renewed(flow, self._now_ns) if from_opener else flow)
        if self._packet.protocol != TCP:
            return self._going_on(renewed(counted(flow, self._packet, self._now_ns), self._now_ns))
        if self._segment is Segment.SYN and flow.state in REOPENABLE:
            return self._reopening(flow)
        state = next_state(flow.state, self._segment, from_opener=from_opener)
        if state is Unmoved.INVALID:
            grounds = grounds_without_place(self._packet, flow.state, from_opener=from_opener)
            return _denied(Reason.INVALID_STATE, 9, grounds, flow)
        if state is Unmoved.IGNORED:
            return self._going_on(counted(flow, self._packet, self._now_ns))
        return self._going_on(renewed(counted(replace(flow, state=state), self._packet, self._now_ns), self._now_ns))

    def _going_on(self, flow: Flow) -> Judgement:
        return _by_flow(Reason.ESTABLISHED, 9, flow, flow)

    def _reopening(self, old: Flow) -> Judgement:
        """Rows 11 and 13 for a SYN that finds a flow past its life."""
        opening = Opening.of(self._packet)
        rule = self._ruleset.find_rule(opening)
        if rule is None:
            return _denied(Reason.NO_RULE, 11, flow=renewed(old, self._now_ns) if old.revoked else old)
        flow = open_flow(self._packet, old.key, opening, rule, epoch=self._epoch, now_ns=self._now_ns)
        return self._opened(flow, ())

    def _of_no_flow(self, key: FlowKey | None) -> Judgement:
        """Rows 10 to 13."""
        packet, opening = self._packet, Opening.of(self._packet)
        if packet.protocol == TCP and self._segment is not Segment.SYN:
            return self._mid_stream(key, opening)
        if is_icmp_reply(packet.protocol, packet.icmp_type):
            return _denied(Reason.INVALID_STATE, 10, grounds_without_flow(packet))
        return self._by_rules(key, opening) or _denied(Reason.NO_RULE, 11)

    def _mid_stream(self, key: FlowKey | None, opening: Opening) -> Judgement:
        """Row 10 for TCP, with its exception after a cold start."""
        if self._now_ns < self._table.loose_until_ns and self._segment is Segment.ACK:
            found = self._by_rules(key, opening) or self._by_rules(key, Opening.answered_by(self._packet))
            if found:
                return found
        return _denied(Reason.INVALID_STATE, 10, grounds_without_flow(self._packet))

    def _by_rules(self, key: FlowKey | None, opening: Opening) -> Judgement | None:
        """Rows 12 and 13; None if no rule allows ``opening``."""
        packet = self._packet
        rule = self._ruleset.find_rule(opening)
        if rule is None:
            return None
        if key is None or is_for_many(packet.destination):
            return Judgement(verdict=Verdict(reason=Reason.NEW, rule_id=rule.rule.id), step=13, group_id=rule.group_id)
        victims = self._table.find_room(packet.server, servers=self._servers, now_ns=self._now_ns)
        if victims is None:
            return _denied(Reason.TABLE_FULL, 12)
        return self._opened(open_flow(packet, key, opening, rule, epoch=self._epoch, now_ns=self._now_ns), victims)

    def _opened(self, flow: Flow, victims: tuple[FlowKey, ...]) -> Judgement:
        verdict = Verdict(reason=Reason.NEW, rule_id=flow.rule_id, opened=True)
        return Judgement(verdict=verdict, step=13, group_id=flow.group_id, flow=flow, victims=victims)
