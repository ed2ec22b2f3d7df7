"""The transitions of TCP, cell by cell."""

from __future__ import annotations

import pytest
from agent_world import ACK, FIN, FIN_ACK, RST, RST_ACK, SYN, SYN_ACK

from secgroups.agent.flow import TcpFlags
from secgroups.agent.tcp import FlowState, Segment, Unmoved, next_state, segment_of

# Columns as in nf_conntrack_proto_tcp.c of Linux 6.1, without NONE.
STATES = ("SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2")
NAMES = dict(zip(("SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2"), STATES, strict=True)) | {"IV": "INVALID", "IG": "IGNORED"}
KERNEL = [
    (True, "SYN", "SS IG IG IG IG IG SS SS S2"),
    (True, "SYN/ACK", "IV SR IV IV IV IV IV IV SR"),
    (True, "FIN", "IV FW FW LA LA LA TW CL IV"),
    (True, "ACK", "IV ES ES CW CW TW TW CL IV"),
    (True, "RST", "CL CL CL CL CL CL CL CL CL"),
    (False, "SYN", "S2 IV IV IV IV IV SS IV S2"),
    (False, "SYN/ACK", "SR IG IG IG IG IG IG IG SR"),
    (False, "FIN", "IV FW FW LA LA LA TW CL IV"),
    (False, "ACK", "IG SR ES CW CW TW TW CL IG"),
    (False, "RST", "CL CL CL CL CL CL CL CL CL"),
]
CELLS = [
    (FlowState[state], from_opener, Segment(segment), NAMES[outcome])
    for from_opener, segment, row in KERNEL
    for state, outcome in zip(STATES, row.split(), strict=True)
]


@pytest.mark.parametrize(("state", "from_opener", "segment", "expected"), CELLS)
def test_every_cell_is_that_of_the_kernel(state, from_opener, segment, expected):
    assert next_state(state, segment, from_opener=from_opener).value == expected


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("from_opener", [True, False])
def test_a_segment_that_is_nothing_is_invalid_in_every_state(state, from_opener):
    assert next_state(FlowState[state], None, from_opener=from_opener) is Unmoved.INVALID


@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        (Segment.SYN, SYN),
        (Segment.SYN, SYN | TcpFlags.ECE | TcpFlags.CWR),  # ECN set-up
        (Segment.SYN_ACK, SYN_ACK),
        (Segment.FIN, FIN_ACK),
        (Segment.FIN, FIN),
        (Segment.ACK, ACK),
        (Segment.ACK, ACK | TcpFlags.PSH | TcpFlags.URG),
        (Segment.RST, RST),
        (Segment.RST, RST_ACK),
        (Segment.RST, RST | SYN),
        (None, 0),
        (None, TcpFlags.PSH | TcpFlags.URG),
    ],
)
def test_flags_name_the_segment(expected, flags):
    assert segment_of(flags) is expected
