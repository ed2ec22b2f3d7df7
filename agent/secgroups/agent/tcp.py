"""The states of a flow and how TCP segments move them.

The transitions and time-outs are those of Linux nf_conntrack (``tcp_conntracks`` and ``tcp_timeouts`` in
net/netfilter/nf_conntrack_proto_tcp.c, as of 6.1), with the opener as its ORIGINAL and the other end as its REPLY direction.

Where the contract is silent:

- What the kernel *ignores* (a SYN within a connection, a late SYN/ACK, an ACK that answers a SYN) passes, as it does there: the
  receiver answers it with a reset or a challenge. It leaves the state as it is and does not renew the flow.
- The kernel also remembers the last segment and its sequence numbers to tell a challenge ACK, an ignored SYN that was
  answered after all, a simultaneous open answered by the other end alone and a reset out of window. Sequence numbers are not
  tracked here, so the table alone decides.
- A reset in answer to the first SYN closes like any other (10 s); the kernel forgets such a flow at once.
- Unacknowledged data and retransmissions do not shorten a time-out.
"""

from __future__ import annotations

from enum import Enum

from secgroups.agent.flow import TcpFlags


class FlowState(Enum):
    """Where a flow is in its life. The last two are for everything that is not TCP."""

    SYN_SENT = "SYN_SENT"
    SYN_SENT2 = "SYN_SENT2"
    SYN_RECV = "SYN_RECV"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT = "FIN_WAIT"
    CLOSE_WAIT = "CLOSE_WAIT"
    LAST_ACK = "LAST_ACK"
    TIME_WAIT = "TIME_WAIT"
    CLOSE = "CLOSE"
    UNANSWERED = "UNANSWERED"
    ANSWERED = "ANSWERED"


class Unmoved(Enum):
    """What becomes of a segment that moves no flow: ``IGNORED`` passes, ``INVALID`` does not."""

    IGNORED = "IGNORED"
    INVALID = "INVALID"


class Segment(Enum):
    """What a segment is to the transition table; the first that fits: RST, SYN with or without ACK, FIN, ACK."""

    SYN = "SYN"
    SYN_ACK = "SYN/ACK"
    FIN = "FIN"
    ACK = "ACK"
    RST = "RST"


TCP_TIMEOUTS_S = {
    FlowState.SYN_SENT: 120,
    FlowState.SYN_SENT2: 120,
    FlowState.SYN_RECV: 60,
    FlowState.ESTABLISHED: 432_000,
    FlowState.FIN_WAIT: 120,
    FlowState.CLOSE_WAIT: 60,
    FlowState.LAST_ACK: 30,
    FlowState.TIME_WAIT: 120,
    FlowState.CLOSE: 10,
}

# The handshake is complete. A spoofed SYN never comes this far: its SYN/ACK goes to somebody who did not ask.
CONNECTED = frozenset(
    {FlowState.ESTABLISHED, FlowState.FIN_WAIT, FlowState.CLOSE_WAIT, FlowState.LAST_ACK, FlowState.TIME_WAIT},
)

# A SYN that finds one of these is judged as a new connection, from whichever end it comes.
REOPENABLE = frozenset({FlowState.TIME_WAIT, FlowState.CLOSE})

_Row = dict[FlowState, FlowState | Unmoved]


def _ignored(*states: FlowState) -> _Row:
    return dict.fromkeys(states, Unmoved.IGNORED)


# What is not in a row is INVALID.
_FIN: _Row = {
    FlowState.SYN_RECV: FlowState.FIN_WAIT,
    FlowState.ESTABLISHED: FlowState.FIN_WAIT,
    FlowState.FIN_WAIT: FlowState.LAST_ACK,
    FlowState.CLOSE_WAIT: FlowState.LAST_ACK,
    FlowState.LAST_ACK: FlowState.LAST_ACK,
    FlowState.TIME_WAIT: FlowState.TIME_WAIT,
    FlowState.CLOSE: FlowState.CLOSE,
}
_ACK: _Row = {
    FlowState.ESTABLISHED: FlowState.ESTABLISHED,
    FlowState.FIN_WAIT: FlowState.CLOSE_WAIT,
    FlowState.CLOSE_WAIT: FlowState.CLOSE_WAIT,
    FlowState.LAST_ACK: FlowState.TIME_WAIT,
    FlowState.TIME_WAIT: FlowState.TIME_WAIT,
    FlowState.CLOSE: FlowState.CLOSE,
}
_RST: _Row = dict.fromkeys(TCP_TIMEOUTS_S, FlowState.CLOSE)
_CONNECTED_OR_ANSWERED = (FlowState.SYN_RECV, FlowState.ESTABLISHED, FlowState.FIN_WAIT, FlowState.CLOSE_WAIT, FlowState.LAST_ACK)

_FROM_OPENER: dict[Segment, _Row] = {
    Segment.SYN: {
        FlowState.SYN_SENT: FlowState.SYN_SENT,
        FlowState.SYN_SENT2: FlowState.SYN_SENT2,
        FlowState.TIME_WAIT: FlowState.SYN_SENT,
        FlowState.CLOSE: FlowState.SYN_SENT,
        **_ignored(*_CONNECTED_OR_ANSWERED),
    },
    Segment.SYN_ACK: {FlowState.SYN_SENT2: FlowState.SYN_RECV, FlowState.SYN_RECV: FlowState.SYN_RECV},
    Segment.FIN: _FIN,
    Segment.ACK: {FlowState.SYN_RECV: FlowState.ESTABLISHED, **_ACK},
    Segment.RST: _RST,
}
_FROM_ANSWERER: dict[Segment, _Row] = {
    Segment.SYN: {
        FlowState.SYN_SENT: FlowState.SYN_SENT2,
        FlowState.SYN_SENT2: FlowState.SYN_SENT2,
        FlowState.TIME_WAIT: FlowState.SYN_SENT,
    },
    Segment.SYN_ACK: {
        FlowState.SYN_SENT: FlowState.SYN_RECV,
        FlowState.SYN_SENT2: FlowState.SYN_RECV,
        **_ignored(*_CONNECTED_OR_ANSWERED, FlowState.TIME_WAIT, FlowState.CLOSE),
    },
    Segment.FIN: _FIN,
    Segment.ACK: {
        FlowState.SYN_RECV: FlowState.SYN_RECV,
        **_ignored(FlowState.SYN_SENT, FlowState.SYN_SENT2),
        **_ACK,
    },
    Segment.RST: _RST,
}


def segment_of(tcp_flags: int) -> Segment | None:
    """Return what a segment with these flags is, None if it has none of SYN, FIN, RST and ACK."""
    if tcp_flags & TcpFlags.RST:
        return Segment.RST
    if tcp_flags & TcpFlags.SYN:
        return Segment.SYN_ACK if tcp_flags & TcpFlags.ACK else Segment.SYN
    if tcp_flags & TcpFlags.FIN:
        return Segment.FIN
    return Segment.ACK if tcp_flags & TcpFlags.ACK else None


def next_state(state: FlowState, segment: Segment | None, *, from_opener: bool) -> FlowState | Unmoved:
    """Return the state that ``segment`` puts a flow in ``state`` into."""
    if segment is None:
        return Unmoved.INVALID
    rows = _FROM_OPENER if from_opener else _FROM_ANSWERER
    return rows[segment].get(state, Unmoved.INVALID)
