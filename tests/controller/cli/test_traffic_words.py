"""Flows and verdicts as lines. No agent."""

from __future__ import annotations

from typing import Any

import pytest

from secgroups.cli.traffic_words import conntrack_line, verdict_line
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

RULE = "01a21b7b-18b3-7000-bf58-19f703bee47d"
SHORT = "01a21b7b-18b3-7000"
IN, OUT = types.DIRECTION_INGRESS, types.DIRECTION_EGRESS


def flow(left_s: float = 119.9, **fields: Any) -> pb.Flow:
    made = pb.Flow(
        server="p/w1",
        protocol=types.PROTOCOL_TCP,
        opening_direction=IN,
        local_address="10.0.0.9",
        local_port=22,
        remote_address="203.0.113.7",
        remote_port=40_000,
        state=pb.FLOW_STATE_SYN_SENT,
        rule_id=RULE,
        opening_packets=2,
        opening_bytes=120,
    )
    made.MergeFrom(pb.Flow(**fields))
    made.remaining.FromMilliseconds(int(left_s * 1_000))
    return made


def portless(**fields: Any) -> pb.Flow:
    made = flow(**fields)
    made.ClearField("local_port")
    made.ClearField("remote_port")
    return made


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (
            "tcp      6 119 SYN_SENT src=203.0.113.7 dst=10.0.0.9 sport=40000 dport=22 packets=2 bytes=120 [UNREPLIED]"
            " src=10.0.0.9 dst=203.0.113.7 sport=22 dport=40000 packets=0 bytes=0",
            flow(),
        ),
        (
            "tcp      6 431999 ESTABLISHED src=203.0.113.7 dst=10.0.0.9 sport=40000 dport=22 packets=2 bytes=120"
            " src=10.0.0.9 dst=203.0.113.7 sport=22 dport=40000 packets=1 bytes=60 [ASSURED]",
            flow(431_999.5, state=pb.FLOW_STATE_ESTABLISHED, answered=True, reply_packets=1, reply_bytes=60),
        ),
        (
            "udp      17 29 src=10.0.0.9 dst=203.0.113.7 sport=22 dport=40000 packets=2 bytes=120 [UNREPLIED]"
            " src=203.0.113.7 dst=10.0.0.9 sport=40000 dport=22 packets=0 bytes=0",
            flow(29, protocol=types.PROTOCOL_UDP, opening_direction=OUT, state=pb.FLOW_STATE_UNANSWERED),
        ),
        (
            "udp      17 120 REVOKED src=203.0.113.7 dst=10.0.0.9 sport=40000 dport=22 packets=2 bytes=120"
            " src=10.0.0.9 dst=203.0.113.7 sport=22 dport=40000 packets=1 bytes=9 [ASSURED]",
            flow(
                120,
                protocol=types.PROTOCOL_UDP,
                state=pb.FLOW_STATE_REVOKED,
                revoked=True,
                answered=True,
                reply_packets=1,
                reply_bytes=9,
            ),
        ),
        (
            "icmp     1 30 src=203.0.113.7 dst=10.0.0.9 type=8 id=7 packets=2 bytes=120"
            " src=10.0.0.9 dst=203.0.113.7 type=0 id=7 packets=1 bytes=84 [ASSURED]",
            portless(
                left_s=30,
                protocol=types.PROTOCOL_ICMP,
                icmp_type=8,
                icmp_id=7,
                state=pb.FLOW_STATE_ANSWERED,
                answered=True,
                reply_packets=1,
                reply_bytes=84,
            ),
        ),
        (
            "icmpv6   58 30 src=2001:db8::7 dst=2001:db8::9 type=128 id=0 packets=2 bytes=120 [UNREPLIED]"
            " src=2001:db8::9 dst=2001:db8::7 type=129 id=0 packets=0 bytes=0",
            portless(
                left_s=30,
                protocol=types.PROTOCOL_ICMP,
                local_address="2001:db8::9",
                remote_address="2001:db8::7",
                icmp_type=128,
                icmp_id=0,
                state=pb.FLOW_STATE_UNANSWERED,
            ),
        ),
        (
            "gre      47 600 src=203.0.113.7 dst=10.0.0.9 packets=2 bytes=120 [UNREPLIED]"
            " src=10.0.0.9 dst=203.0.113.7 packets=0 bytes=0",
            portless(left_s=600, protocol=types.PROTOCOL_NUMBER, protocol_number=47, state=pb.FLOW_STATE_UNANSWERED),
        ),
        (
            "unknown  99 600 src=203.0.113.7 dst=10.0.0.9 packets=2 bytes=120 [UNREPLIED]"
            " src=10.0.0.9 dst=203.0.113.7 packets=0 bytes=0",
            portless(left_s=600, protocol=types.PROTOCOL_NUMBER, protocol_number=99, state=pb.FLOW_STATE_UNANSWERED),
        ),
        (
            "sctp     132 0 src=203.0.113.7 dst=10.0.0.9 sport=40000 dport=22 packets=2 bytes=120 [UNREPLIED]"
            " src=10.0.0.9 dst=203.0.113.7 sport=22 dport=40000 packets=0 bytes=0",
            flow(0.9, protocol=types.PROTOCOL_NUMBER, protocol_number=132, state=pb.FLOW_STATE_UNANSWERED),
        ),
    ],
)
def test_a_flow_reads_as_conntrack_shows_it_with_server_and_rule_at_the_end(expected: str, given: pb.Flow) -> None:
    assert conntrack_line(given) == f"{expected} server=p/w1 rule={SHORT}"


def event(action: str = "DENY", reason: str = "NO_RULE", rule_id: str = "", server: str = "p/w1", **fields: Any) -> pb.VerdictEvent:
    packet = pb.Packet(
        server=server, direction=IN, source="203.0.113.7", destination="10.0.0.9", protocol=types.PROTOCOL_TCP, source_port=40_000
    )
    packet.MergeFrom(pb.Packet(**fields))
    made = pb.VerdictEvent(
        packet=packet,
        action=types.Action.Value(f"ACTION_{action}"),
        reason=types.Reason.Value(f"REASON_{reason}"),
        rule_id=rule_id,
    )
    made.time.FromNanoseconds(1_769_860_800_001_999_999)
    return made


QUOTED = pb.QuotedPacket(
    source="10.0.0.9", destination="203.0.113.7", protocol=types.PROTOCOL_UDP, source_port=53, destination_port=4_000
)
FLAGS = [pb.TCP_FLAG_SYN, pb.TCP_FLAG_ACK]


def ping6(**fields: Any) -> pb.VerdictEvent:
    made = event(source="2001:db8::7", destination="2001:db8::9", protocol=types.PROTOCOL_ICMP, icmp_type=128, **fields)
    made.packet.ClearField("source_port")
    return made


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (
            "203.0.113.7:40000 -> 10.0.0.9:23 p/w1 ingress DENY NO_RULE (tcp SYN)",
            event(destination_port=23, tcp_flags=[pb.TCP_FLAG_SYN]),
        ),
        (
            f"203.0.113.7:40000 -> 10.0.0.9:22 p/w1 ingress ALLOW NEW rule={SHORT} (tcp SYN,ACK)",
            event("ALLOW", "NEW", RULE, destination_port=22, tcp_flags=FLAGS),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9:22 p/w1 ingress DENY INVALID_PACKET (tcp no flags)",
            event(reason="INVALID_PACKET", destination_port=22),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9:22 - ingress DENY UNKNOWN_SERVER (tcp SYN)",
            event(reason="UNKNOWN_SERVER", server="", destination_port=22, tcp_flags=[pb.TCP_FLAG_SYN]),
        ),
        ("2001:db8::7 -> 2001:db8::9 p/w1 ingress DENY NO_RULE (icmpv6 type 128 code 0)", ping6()),
        (
            "[2001:db8::7]:40000 -> [2001:db8::9]:53 p/w1 egress DENY SPOOFED_SOURCE (udp)",
            event(
                reason="SPOOFED_SOURCE",
                direction=OUT,
                source="2001:db8::7",
                destination="2001:db8::9",
                protocol=types.PROTOCOL_UDP,
                destination_port=53,
            ),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9 p/w1 ingress DENY NO_RULE (protocol 99)",
            event(protocol=types.PROTOCOL_NUMBER, protocol_number=99),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9 p/w1 ingress DENY UNKNOWN_FRAGMENT (tcp later fragment)",
            event(reason="UNKNOWN_FRAGMENT", fragment=pb.FRAGMENT_POSITION_LATER),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9:53 p/w1 ingress DENY NO_RULE (udp first fragment)",
            event(protocol=types.PROTOCOL_UDP, destination_port=53, fragment=pb.FRAGMENT_POSITION_FIRST),
        ),
        (
            "203.0.113.7:40000 -> 10.0.0.9 p/w1 ingress DENY NO_RULE"
            " (icmp type 3 code 3 about udp 10.0.0.9:53 -> 203.0.113.7:4000)",
            event(protocol=types.PROTOCOL_ICMP, icmp_type=3, icmp_code=3, quoted=QUOTED),
        ),
    ],
)
def test_a_verdict_reads_as_one_line(expected: str, given: pb.VerdictEvent) -> None:
    assert verdict_line(given) == f"2026-01-31T12:00:00.001Z: {expected}"
