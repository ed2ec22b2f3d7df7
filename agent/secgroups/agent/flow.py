"""What the engine is asked and what it answers: packets, verdicts, reasons.

Plain values without behaviour that could differ between engines. Addresses are ``ipaddress`` objects; time is never in here, it
comes as an argument (``now_ns``, monotonic nanoseconds) to whoever decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

# IANA protocol numbers that the engine treats in a way of their own.
ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132

PROTOCOLS_WITH_PORTS = frozenset({TCP, UDP, SCTP})


class Direction(IntEnum):
    """Which way a packet goes, seen from the server. The numbers are those of ``secgroups.v1.Direction``."""

    INGRESS = 1
    EGRESS = 2

    @property
    def opposite(self) -> Direction:
        return Direction.EGRESS if self is Direction.INGRESS else Direction.INGRESS


class Fragment(IntEnum):
    """``FIRST`` has offset 0 and more to come, ``LATER`` any other offset."""

    NONE = 0
    FIRST = 1
    LATER = 2


class TcpFlags(IntFlag):
    """The low byte of the TCP flags (RFC 9293, section 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class Action(IntEnum):
    """A zero can't pass for a verdict."""

    ALLOW = 1
    DENY = 2


class Reason(IntEnum):
    """Why a verdict is what it is. The numbers are those of ``secgroups.v1.Reason``."""

    NEW = 1
    ESTABLISHED = 2
    RELATED = 3
    ESSENTIAL = 4
    UNKNOWN_SERVER = 16
    NO_RULESET = 17
    INVALID_PACKET = 18
    ROGUE_SERVICE = 19
    SPOOFED_SOURCE = 20
    NOT_LOCAL = 21
    UNKNOWN_FRAGMENT = 22
    INVALID_STATE = 23
    NO_RULE = 24
    TABLE_FULL = 25
    REVOKED = 26

    @property
    def action(self) -> Action:
        return Action.ALLOW if self < Reason.UNKNOWN_SERVER else Action.DENY


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotedPacket:
    """The header that an ICMP error carries of the packet it is about, as that packet was sent.

    Ports are 0 where the protocol has none; ``icmp_type`` and ``icmp_id`` are 0 unless the protocol is ICMP.
    """

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = 0
    icmp_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet's summary at one server. Nothing is checked here: an impossible packet gets a verdict like any other.

    ``server`` is ``project/id``. Ports are 0 where the protocol has none or, in a later fragment, where they are not known.
    ``fragment_id`` is the IP identification and counts only for fragments. ``length`` is the whole IP packet in bytes.
    """

    server: str
    direction: Direction
    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    tcp_flags: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    icmp_id: int = 0
    fragment: Fragment = Fragment.NONE
    fragment_id: int = 0
    quoted: QuotedPacket | None = None
    length: int = 0

    @property
    def local(self) -> Address:
        return self.destination if self.direction is Direction.INGRESS else self.source

    @property
    def remote(self) -> Address:
        return self.source if self.direction is Direction.INGRESS else self.destination


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``rule_id`` is empty where no rule decided; ``opened`` says that this packet opened a flow."""

    reason: Reason
    rule_id: str = ""
    opened: bool = False

    @property
    def action(self) -> Action:
        return self.reason.action


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMiss:
    """A rule that failed in exactly one field: ``protocol``, ``ports``, ``icmp_type``, ``icmp_code`` or ``remote``."""

    rule_id: str
    group_id: str
    failed: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A verdict with its grounds. ``step`` is the row of the verdict table (1 to 13) that decided.

    ``group_id`` is that of the deciding rule, ``group_name`` its name, or the id if the group is gone; ``nearest`` is filled
    for ``NO_RULE`` only, at most five, nearest first; ``text`` is one sentence for people.
    """

    verdict: Verdict
    step: int
    group_id: str = ""
    group_name: str = ""
    nearest: tuple[NearMiss, ...] = ()
    text: str = ""
