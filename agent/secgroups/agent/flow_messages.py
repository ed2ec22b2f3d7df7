"""Turns a request for flows into a filter, and flows into messages."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from secgroups.agent.errors import FilterError
from secgroups.agent.filter_values import find_protocol, network_of, rule_id_of, server_of
from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP
from secgroups.agent.flow_filter import REVOKED, STATES, FlowFilter
from secgroups.agent.tcp import FlowState
from secgroups.agent.tracking import NOT_KNOWN_NS, Flow
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

_STATES = {name: pb.FlowState.Value(f"FLOW_STATE_{name}") for name in STATES}
_STATE_NAMES = {number: name for name, number in _STATES.items()} | {pb.FLOW_STATE_UNSPECIFIED: ""}
_STATE_NUMBERS = {state: _STATES[state.value] for state in FlowState}
_PROTOCOLS = {
    TCP: types.PROTOCOL_TCP,
    UDP: types.PROTOCOL_UDP,
    ICMP: types.PROTOCOL_ICMP,
    ICMPV6: types.PROTOCOL_ICMP,
}


def flow_filter_of(request: pb.ListFlowsRequest) -> FlowFilter:
    """Return the filter. FilterError, which names the field, for a value that nothing can have."""
    if request.state not in _STATE_NAMES:
        raise FilterError("state", f"{request.state} is no state of a flow")
    return FlowFilter(
        server=server_of(request.server, "server") if request.server else "",
        remote=network_of(request.remote_cidr, "remote_cidr") if request.remote_cidr else None,
        port=request.port or None,
        protocol=find_protocol(request),
        state=_STATE_NAMES[request.state],
        rule_id=rule_id_of(request.rule_id, "rule_id"),
    )


def flow_message(flow: Flow, now_ns: int) -> pb.Flow:
    """Return ``flow`` as it is at ``now_ns``."""
    key = flow.key
    is_icmp = key.protocol in (ICMP, ICMPV6)
    message = pb.Flow(
        server=key.server,
        protocol=_PROTOCOLS.get(key.protocol, types.PROTOCOL_NUMBER),
        opening_direction=types.Direction.ValueType(flow.opening.direction),
        local_address=str(key.local),
        local_port=0 if is_icmp else key.local_port,
        remote_address=str(key.remote),
        remote_port=0 if is_icmp else key.remote_port,
        state=_STATES[REVOKED] if flow.revoked else _STATE_NUMBERS[flow.state],
        answered=flow.answered,
        revoked=flow.revoked,
        rule_id=flow.rule_id,
        group_id=flow.group_id,
        opening_packets=flow.opener_packets,
        opening_bytes=flow.opener_bytes,
        reply_packets=flow.answerer_packets,
        reply_bytes=flow.answerer_bytes,
        age=None if flow.opened_ns == NOT_KNOWN_NS else _duration(now_ns - flow.opened_ns),
        idle=None if flow.seen_ns == NOT_KNOWN_NS else _duration(now_ns - flow.seen_ns),
        remaining=_duration(flow.deadline_ns - now_ns),
    )
    if message.protocol == types.PROTOCOL_NUMBER:
        message.protocol_number = key.protocol
    if is_icmp:
        message.icmp_type, message.icmp_id = key.remote_port, key.local_port
    if flow.revoked:
        message.resume_state = _STATE_NUMBERS[flow.state]
    return message


def _duration(span_ns: int) -> Duration:
    # A flow may be seen between the moment that was taken for now and this one.
    seconds, nanos = divmod(max(0, span_ns), 1_000_000_000)
    return Duration(seconds=seconds, nanos=nanos)
