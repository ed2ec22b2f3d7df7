"""The contract as arrays, for the compiled engine: made from the same definitions that the reference engine uses.

States have the numbers of their order in ``FlowState`` from 1 on, segments those of ``Segment`` from 1 on.
"""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from typing import Any

from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP, Direction, Packet
from secgroups.agent.screening import find_essential_service, find_fault, find_rogue_service, is_icmp_error
from secgroups.agent.tcp import CONNECTED, REOPENABLE, TCP_TIMEOUTS_S, FlowState, Segment, Unmoved, next_state, segment_of
from secgroups.agent.tracking import NS_PER_S, find_request, is_icmp_reply, is_icmp_request, revoked_s, timeout_s

STATES = dict(enumerate(FlowState, start=1))
SEGMENTS = dict(enumerate(Segment, start=1))

_SEGMENT_NUMBERS = {segment: number for number, segment in SEGMENTS.items()}
_STATE_NUMBERS = {state: number for number, state in STATES.items()}
_STATES_ROOM = 16
_IGNORED, _INVALID = 0xFE, 0xFF

_ERROR, _REQUEST, _REPLY, _ESSENTIAL_OUT, _ESSENTIAL_IN, _ROGUE = (1 << bit for bit in range(6))

# A protocol for each class of time-outs.
_CLASSES = (TCP, UDP, ICMP, 0)
_SOMEBODY = {ICMP: ip_address("192.0.2.1"), ICMPV6: ip_address("2001:db8::1")}


@cache
def contract_tables() -> dict[str, Any]:
    """Return all of them, by the names that ``_engine.Core`` knows."""
    return {
        "segments": [_segment(flags) for flags in range(256)],
        "moves": [
            [[_move(state, segment, from_opener) for state in range(_STATES_ROOM)] for segment in Segment]
            for from_opener in (True, False)
        ],
        "icmp_kinds": [[_icmp_kind(protocol, number) for number in range(256)] for protocol in (ICMP, ICMPV6)],
        "icmp_requests": [[find_request(protocol, number) or 0 for number in range(256)] for protocol in (ICMP, ICMPV6)],
        "protocol_classes": [{TCP: 0, UDP: 1, ICMP: 2, ICMPV6: 2}.get(protocol, 3) for protocol in range(256)],
        "timeouts_ns": [[_timeout_ns(protocol, state) for state in range(_STATES_ROOM)] for protocol in _CLASSES],
        "revoked_ns": [revoked_s(protocol) * NS_PER_S for protocol in _CLASSES],
        "connected": sum(1 << _STATE_NUMBERS[state] for state in CONNECTED),
        "reopenable": sum(1 << _STATE_NUMBERS[state] for state in REOPENABLE),
    }


def _packet(protocol: int, direction: Direction = Direction.EGRESS, **fields: Any) -> Packet:
    somebody = _SOMEBODY.get(protocol, _SOMEBODY[ICMP])
    return Packet(server="", direction=direction, source=somebody, destination=somebody, protocol=protocol, **fields)


def _segment(flags: int) -> int:
    """Return 0 for flags that no stack sends."""
    if find_fault(_packet(TCP, source_port=1, destination_port=1, tcp_flags=flags)):
        return 0
    segment = segment_of(flags)
    return _SEGMENT_NUMBERS[segment] if segment else 0


def _move(state: int, segment: Segment, from_opener: bool) -> int:
    if STATES.get(state) not in TCP_TIMEOUTS_S:
        return _INVALID
    after = next_state(STATES[state], segment, from_opener=from_opener)
    if isinstance(after, Unmoved):
        return _IGNORED if after is Unmoved.IGNORED else _INVALID
    return _STATE_NUMBERS[after]


def _icmp_kind(protocol: int, number: int) -> int:
    egress = _packet(protocol, icmp_type=number)
    ingress = _packet(protocol, Direction.INGRESS, icmp_type=number)
    facts = {
        _ERROR: is_icmp_error(egress),
        _REQUEST: is_icmp_request(protocol, number),
        _REPLY: is_icmp_reply(protocol, number),
        _ESSENTIAL_OUT: find_essential_service(egress, {egress.source}),
        _ESSENTIAL_IN: find_essential_service(ingress, set()),
        _ROGUE: find_rogue_service(egress),
    }
    return sum(bit for bit, holds in facts.items() if holds)


def _timeout_ns(protocol: int, state: int) -> int:
    is_of_tcp = STATES.get(state) in TCP_TIMEOUTS_S
    return timeout_s(protocol, STATES[state]) * NS_PER_S if state in STATES and is_of_tcp == (protocol == TCP) else 0
