"""Packets one by one, each by the kernel and by the engine; what is expected of both stands beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN, SYN_ACK, icmp, other, reply, tcp, udp
from rig import DB, EGRESS, WEB, Rig, allow

WEB4, DB4, WEB6, DB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9", "2001:db8::5"
CLIENT, OTHER, CLIENT6, OTHER6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7", "2001:db8:2::1"

RULES = {
    "web": [
        allow("w1", protocol=6, ports=80),
        allow("w2", protocol=6, ports=(8000, 8010), network="203.0.113.0/24"),
        allow("w3", protocol=17, ports=53, network="2001:db8:1::/48"),
        allow("w4", protocol=1, icmp=(8, None)),
        allow("w5", EGRESS, protocol=6, ports=5432, group="db"),
        allow("w6", protocol=47, network="198.51.100.0/24"),
        allow("w7", protocol=132, ports=9),
        allow("w8", EGRESS, protocol=17, ports=53),
    ],
    "db": [allow("d1", protocol=6, ports=5432, group="web")],
}


@pytest.fixture
async def both(rig: Rig) -> Rig:
    await rig.change(groups=RULES, servers={WEB: ["web"], DB: ["db"]}, members={"db": [DB4, DB6], "web": [WEB4, WEB6]})
    await rig.stamped()
    return rig


@pytest.mark.parametrize(
    ("passes", "packet"),
    [
        (True, tcp(CLIENT, WEB4, 80)),
        (False, tcp(CLIENT, WEB4, 81)),
        (False, udp(CLIENT, WEB4, 80)),
        (True, tcp(CLIENT6, WEB6, 80)),
        (False, tcp(CLIENT6, WEB6, 443)),
        (True, tcp(CLIENT, WEB4, 8000)),
        (True, tcp(CLIENT, WEB4, 8010)),
        (False, tcp(CLIENT, WEB4, 8011)),
        (False, tcp(OTHER, WEB4, 8000)),
        (True, udp(CLIENT6, WEB6, 53)),
        (False, udp(OTHER6, WEB6, 53)),
        (True, icmp(CLIENT, WEB4, 8)),
        (False, icmp(CLIENT, WEB4, 13)),
        (False, icmp(CLIENT, WEB4, 0)),
        (True, other(OTHER, WEB4, 47)),
        (False, other(CLIENT, WEB4, 47)),
        (False, other(OTHER, WEB4, 50)),
        (True, tcp(WEB4, DB4, 5432)),
        (True, tcp(WEB6, DB6, 5432)),
        (False, tcp(WEB4, DB4, 5433)),
        (False, tcp(DB4, WEB4, 80)),
        (False, tcp(CLIENT, DB4, 5432)),
        (False, tcp(WEB4, CLIENT, 5432)),
        (True, udp(WEB4, CLIENT, 53)),
        (False, tcp(CLIENT, WEB4, 80, ACK)),
        (False, tcp(CLIENT, WEB4, 80, SYN_ACK)),
        (False, tcp(CLIENT, WEB4, 80, SYN, source_port=0)),
        (True, tcp(CLIENT, OTHER, 80)),
        # Essential services, which no rule speaks of, and their neighbours.
        (True, udp(WEB4, CLIENT, 67, source_port=68)),
        (True, udp(CLIENT, WEB4, 68, source_port=67)),
        (False, udp(CLIENT, WEB4, 67, source_port=68)),
        (False, udp(WEB4, CLIENT, 68, source_port=67)),
        (True, udp(WEB6, CLIENT6, 547, source_port=546)),
        (False, udp(WEB6, CLIENT6, 546, source_port=547)),
        (True, icmp(WEB6, CLIENT6, 135)),
        (True, icmp(CLIENT6, WEB6, 136)),
        (True, icmp(CLIENT6, WEB6, 134)),
        (False, icmp(WEB6, CLIENT6, 134)),
        (False, icmp(CLIENT6, WEB6, 133)),
    ],
    ids=str,
)
async def test_an_opening_packet_gets_what_the_rules_say(both: Rig, passes: bool, packet: object) -> None:
    assert both.agree(packet) is passes


async def test_the_answers_of_an_open_connection_pass(both: Rig) -> None:
    opening = tcp(CLIENT, WEB4, 80)
    assert both.agree(opening)
    assert both.agree(reply(opening, tcp_flags=SYN_ACK))
    assert both.agree(tcp(CLIENT, WEB4, 80, ACK))


async def test_a_connection_between_two_servers_needs_both(both: Rig) -> None:
    opening = tcp(WEB4, DB4, 5432)
    assert both.agree(opening)
    assert both.agree(reply(opening, tcp_flags=SYN_ACK))
    await both.change(groups={"db": []})
    assert not both.agree(tcp(WEB4, DB4, 5432, ACK))
    assert not both.agree(reply(opening, tcp_flags=ACK))
    await both.change(groups={"db": RULES["db"]})
    assert both.agree(tcp(WEB4, DB4, 5432, ACK))
    await both.change(groups={"web": []})
    assert not both.agree(reply(opening, tcp_flags=ACK))
    await both.change(groups={"web": RULES["web"]})
    assert both.agree(reply(opening, tcp_flags=ACK))
