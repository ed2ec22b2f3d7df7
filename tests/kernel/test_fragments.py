"""Fragments: put together before they are judged, and sent on in pieces; what can't be put together goes nowhere."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import SYN_ACK, icmp, reply, tcp, udp
from frames import fragment, fragments, frame
from rig import EGRESS, WEB, Rig, allow

from secgroups.agent.flow import Packet

WEB4, WEB6 = "10.0.0.9", "2001:db8::9"
CLIENT, CLIENT6 = "203.0.113.7", "2001:db8:1::7"
ENDS = [pytest.param(CLIENT, WEB4, id="IPv4"), pytest.param(CLIENT6, WEB6, id="IPv6")]
RULES = [
    allow("dns", protocol=17, ports=53),
    allow("http", protocol=6, ports=80),
    allow("ping", protocol=1, icmp=(8, None)),
    allow("ping6", protocol=1, icmp=(128, None)),
]
DATA = bytes(range(200))
# In the second half, so in the later fragment alone.
LATER = DATA[120:]
_identifications = count(1000)


@pytest.fixture
async def web(rig: Rig) -> Rig:
    await rig.change(groups={"web": RULES}, servers={WEB: ["web"]})
    await rig.stamped()
    return rig


def comes(rig: Rig, *pieces: bytes, source: str = "client", destination: str = "web") -> bool:
    """Send pieces; return whether the later half of the data gets there."""
    rig.world.wires[destination].drain()
    for piece in pieces:
        rig.world.wires[source].send(piece)
    return any(LATER in packet for packet in rig.world.settle(source, destination))


def pieces_of(packet: Packet, first_bytes: int | None = None) -> list[bytes]:
    return fragments(packet, DATA, identification=next(_identifications), first_bytes=first_bytes)


def openings(source: str, destination: str) -> list[tuple[bool, Packet]]:
    ping = 8 if "." in source else 128
    return [
        (True, udp(source, destination, 53)),
        (False, udp(source, destination, 54)),
        (True, tcp(source, destination, 80)),
        (False, tcp(source, destination, 81)),
        (True, icmp(source, destination, ping)),
        (False, icmp(source, destination, 13 if ping == 8 else 139)),
    ]


@pytest.mark.parametrize(("source", "destination"), ENDS)
async def test_fragments_get_what_their_packet_gets(web: Rig, source: str, destination: str) -> None:
    for passes, packet in openings(source, destination):
        assert comes(web, *pieces_of(packet)) is passes, packet
        assert comes(web, *reversed(pieces_of(replace(packet, source_port=packet.source_port and 41_000)))) is passes, packet


@pytest.mark.parametrize(("source", "destination"), ENDS)
async def test_pieces_of_a_packet_alone_do_not_pass(web: Rig, source: str, destination: str) -> None:
    web.world.wires["web"].drain()
    for first, later in (pieces_of(udp(source, destination, 53)), pieces_of(tcp(source, destination, 80))):
        assert web.world.arrivals("client", first, "web") == []
        # The missing piece of another packet is none of this one's.
        assert web.world.arrivals("client", pieces_of(udp(source, destination, 53))[1], "web") == []
        assert web.world.arrivals("client", later, "web") != []


@pytest.mark.parametrize(("source", "destination"), ENDS)
async def test_a_first_fragment_without_ports_opens_nothing_that_its_packet_does_not(
    web: Rig, source: str, destination: str
) -> None:
    # Eight bytes of a TCP header: the ports, but not the flags.
    assert not comes(web, *pieces_of(tcp(source, destination, 81), first_bytes=8))
    assert not comes(web, *pieces_of(tcp(source, destination, 80, SYN_ACK), first_bytes=8))


@pytest.mark.parametrize(("source", "destination"), ENDS)
@pytest.mark.parametrize(("passes", "begin"), [(False, 0), (False, 8), (False, 96), (True, 104)])
async def test_a_fragment_can_not_write_over_what_another_has_brought(
    web: Rig, source: str, destination: str, passes: bool, begin: int
) -> None:
    allowed = udp(source, destination, 53)
    head = 20 if "." in source else 40
    good, bad = (frame(packet, DATA)[head:] for packet in (allowed, udp(source, destination, 54)))
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        number = next(_identifications)
        pieces = (
            fragment(allowed, good[:104], 0, more=True, identification=number),
            fragment(allowed, bad[begin:112], begin, more=True, identification=number),
            fragment(allowed, good[112:], 112, more=False, identification=number),
        )
        assert comes(web, *(pieces[each] for each in order)) is passes


async def test_an_ipv6_packet_that_is_its_own_only_fragment_is_judged_like_others(web: Rig) -> None:
    for passes, packet in openings(CLIENT6, WEB6):
        whole = fragment(packet, frame(packet, DATA)[40:], 0, more=False, identification=next(_identifications))
        assert comes(web, whole) is passes, packet


@pytest.mark.parametrize(("source", "destination"), ENDS)
async def test_fragments_of_a_connection_go_with_it(web: Rig, source: str, destination: str) -> None:
    opening = udp(source, destination, 53)
    back = reply(opening)
    assert web.agree(opening)
    assert comes(web, *pieces_of(back), source="web", destination="client")
    await web.change(groups={"web": [allow("out", EGRESS)]})
    assert not comes(web, *pieces_of(opening))
    assert not comes(web, *pieces_of(back), source="web", destination="client")
    await web.change(groups={"web": RULES})
    assert comes(web, *pieces_of(opening))
    assert comes(web, *pieces_of(back), source="web", destination="client")


@pytest.mark.parametrize(("source", "destination"), ENDS)
async def test_fragments_of_a_server_pass_if_its_rules_say_so(web: Rig, source: str, destination: str) -> None:
    packet = udp(destination, source, 53)
    assert not comes(web, *pieces_of(packet), source="web", destination="client")
    await web.change(groups={"web": [allow("out", EGRESS, protocol=17, ports=53)]})
    assert comes(web, *pieces_of(packet), source="web", destination="client")
    assert not comes(web, *pieces_of(udp(destination, source, 54)), source="web", destination="client")
