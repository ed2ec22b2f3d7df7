"""Servers that are found by their interface: nobody sends from it or gets through it but the server."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, icmp, reply, tcp, udp
from frames import frame
from netns import probe
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.flow import Packet
from secgroups.agent.kernel.settings import KernelSettings

WEB4, DB4, WEB6, DB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9", "2001:db8::5"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
LINK_LOCAL = "fe80::9"
# Allowed, and from the same host to the same one as what a test sends before it: so it arrives after that.
LAST = udp(WEB4, CLIENT, 99)
ALL = [allow("in"), allow("out", EGRESS)]


@pytest.fixture
async def ports(rig: Rig) -> Rig:
    rig.settings(KernelSettings(ports={WEB: "to-web", "p/later": "to-db"}))
    await rig.change(groups={"web": ALL}, servers={WEB: ["web"]})
    await rig.stamped()
    return rig


def counted(rig: Rig, reason: str) -> int:
    words = rig.world.nft("list", "counters", "table", "inet", "secgroups-a").split()
    return int(words[words.index(reason) + 3])


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        ("spoofed_source", udp(CLIENT, OTHER, 53)),
        ("spoofed_source", udp(DB4, CLIENT, 53)),
        ("spoofed_source", udp(CLIENT6, "2001:db8:2::1", 53)),
        ("rogue_service", udp(WEB4, CLIENT, 68, source_port=67)),
        ("rogue_service", udp(OTHER, CLIENT, 68, source_port=67)),
        ("rogue_service", udp(WEB6, CLIENT6, 546, source_port=547)),
    ],
    ids=str,
)
async def test_what_a_server_must_not_send_is_dropped_for_the_right_reason(ports: Rig, reason: str, packet: Packet) -> None:
    before = counted(ports, reason)
    ports.world.wires["web"].send(frame(packet))
    assert frame(packet)[20:] not in [each[20:] for each in ports.world.until("web", "client", frame(LAST))]
    assert counted(ports, reason) == before + 1


async def test_a_server_sends_from_its_own_addresses(ports: Rig) -> None:
    for packet in (udp(WEB4, CLIENT, 53), udp(WEB6, CLIENT6, 53)):
        assert ports.world.until("web", "client", frame(packet)) == []


async def test_nothing_leaves_the_interface_of_a_server_that_is_not_known(ports: Rig) -> None:
    before = counted(ports, "unknown_server")
    ports.world.wires["db"].send(frame(udp(DB4, CLIENT, 53)))
    ports.world.until("web", "client", frame(LAST))
    assert counted(ports, "unknown_server") == before + 1
    ports.world.wires["client"].send(frame(udp(CLIENT, DB4, 53)))
    ports.world.until("client", "web", frame(udp(CLIENT, WEB4, 99)))
    assert counted(ports, "unknown_server") == before + 2
    await ports.change(servers={"p/later": ["web"]}, addresses={"p/later": [DB4, DB6]})
    assert ports.world.until("client", "db", frame(udp(CLIENT, DB4, 54))) == []


@pytest.mark.parametrize(
    "packet",
    [
        replace(icmp(LINK_LOCAL, "ff02::1:ff00:1", 135), source_port=0),
        icmp("::", "ff02::2", 133),
        icmp(WEB6, "2001:db8:ff::1", 136),
    ],
    ids=str,
)
async def test_neighbour_discovery_of_a_server_reaches_the_host(ports: Rig, packet: Packet) -> None:
    spoofed, without = counted(ports, "spoofed_source"), counted(ports, "invalid_state")
    ports.world.wires["web"].send(frame(packet))
    ports.world.until("web", "client", frame(LAST))
    assert (counted(ports, "spoofed_source"), counted(ports, "invalid_state")) == (spoofed, without)


async def test_another_message_from_a_link_local_address_is_spoofed(ports: Rig) -> None:
    before = counted(ports, "spoofed_source")
    ports.world.wires["web"].send(frame(icmp(LINK_LOCAL, "ff02::1", 128)))
    ports.world.until("web", "client", frame(LAST))
    assert counted(ports, "spoofed_source") == before + 1


async def test_a_router_advertisement_of_a_server_is_dropped(ports: Rig) -> None:
    before = counted(ports, "rogue_service")
    ports.world.wires["web"].send(frame(icmp(LINK_LOCAL, "ff02::1", 134)))
    ports.world.until("web", "client", frame(LAST))
    assert counted(ports, "rogue_service") == before + 1


async def test_without_interfaces_nobody_takes_a_servers_address(rig: Rig) -> None:
    await rig.change(groups={"web": ALL}, servers={WEB: ["web"], DB: ["web"]})
    forged = udp(DB4, CLIENT, 53)
    assert rig.world.passes("db", frame(forged), "client")
    assert not rig.world.passes("web", frame(udp(DB4, CLIENT, 54)), "client")
    assert not rig.world.passes("client", frame(udp(DB4, WEB4, 54)), "web")


async def test_connections_by_interface_are_judged_like_others(ports: Rig) -> None:
    opening = tcp(CLIENT, WEB4, 80)
    ports.world.until("client", "web", frame(opening))
    assert ports.world.until("web", "client", frame(reply(opening, tcp_flags=SYN_ACK))) == []
    await ports.change(groups={"web": [allow("last", protocol=17), allow("out", EGRESS)]})
    ports.world.wires["client"].send(frame(tcp(CLIENT, WEB4, 80, ACK)))
    assert ports.world.until("client", "web", frame(udp(CLIENT, WEB4, 99))) == []


async def test_what_comes_to_the_interface_of_a_server_is_for_the_server(ports: Rig) -> None:
    before = counted(ports, "not_local")
    ports.world.wires["client"].send(probe(ports.world.wires["web"].probe_to, 1))
    assert ports.world.until("client", "web", frame(udp(CLIENT, WEB4, 99))) == []
    assert counted(ports, "not_local") == before + 1
