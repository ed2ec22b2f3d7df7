"""The host itself as a server: what it takes in and sends out is judged like the traffic of those behind it."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, error_about, icmp, other, reply, tcp, udp
from frames import frame
from netns import ROUTER4, ROUTER6, World, checksum, run
from rig import EGRESS, SERVER_OF, WEB, Rig, allow

from secgroups.agent.flow import ICMPV6, Action, Packet

HOST = "p/host"
WEB4, WEB6 = "10.0.0.9", "2001:db8::9"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
# linux/in6.h: Python has no name for it.
IPV6_HDRINCL = 36
SOLICITATION, ADVERTISEMENT = 135, 136
RULES = [
    allow("h1", protocol=6, ports=80),
    allow("h2", protocol=17, ports=53, network="203.0.113.0/24"),
    allow("h3", protocol=1, icmp=(8, None)),
    allow("h4", protocol=47, network="203.0.113.0/24"),
    allow("h5", EGRESS, protocol=17, ports=53),
    allow("h6", EGRESS, protocol=6, ports=80, group="web"),
    allow("h7", EGRESS, protocol=1, icmp=(8, None)),
]


@pytest.fixture
async def host(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """The router is a server, and it guards another one."""
    for address in (ROUTER4, ROUTER6):
        monkeypatch.setitem(SERVER_OF, address, HOST)
    await rig.change(
        groups={"host": RULES, "web": [allow("w1", protocol=6, ports=80), allow("w2", EGRESS)]},
        servers={HOST: ["host"], WEB: ["web"]},
        addresses={HOST: [ROUTER4, ROUTER6]},
        members={"web": [WEB4, WEB6]},
    )
    await rig.stamped()
    return rig


@pytest.fixture
def speaking(world: World) -> Iterator[World]:
    world.silence(False)
    try:
        yield world
    finally:
        world.silence(True)


def taken(rig: Rig, packet: Packet, source: str = "client") -> bool:
    """Send a packet to the host; return whether it gets past the hook ``input``, behind which raw sockets are."""
    family = socket.AF_INET if packet.source.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW, packet.protocol) as raw:
        raw.setblocking(False)
        rig.world.wires[source].send(frame(packet))
        rig.world.settle(source, "web" if source == "client" else "client")
        sent = frame(packet)
        with suppress(BlockingIOError):
            while came := raw.recv(65_536):
                # Of IPv6, the payload alone.
                if came[20:] == sent[20:] if family == socket.AF_INET else came == sent[40:]:
                    return True
    return False


def sent(rig: Rig, packet: Packet, destination: str = "client") -> bool:
    """Send a packet from a socket of the host; return whether it gets to ``destination``."""
    data = frame(packet)
    if packet.source.version == 4:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    else:
        raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        raw.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
    # So the kernel tells whoever sends what a filter drops.
    with raw, suppress(PermissionError):
        raw.sendto(data, (str(packet.destination), 0))
    came = rig.world.settle("web" if destination == "client" else "client", destination)
    return any(each[20:] == data[20:] if packet.source.version == 4 else each[40:] == data[40:] for each in came)


def engine_allows(rig: Rig, packet: Packet) -> bool:
    return all(verdict.action is Action.ALLOW for verdict in rig.expected(packet))


@pytest.mark.parametrize(
    ("passes", "packet"),
    [
        (True, tcp(CLIENT, ROUTER4, 80)),
        (False, tcp(CLIENT, ROUTER4, 81)),
        (True, tcp(CLIENT6, ROUTER6, 80)),
        (False, tcp(CLIENT6, ROUTER6, 81)),
        (False, tcp(CLIENT, ROUTER4, 80, ACK, source_port=40_001)),
        (True, udp(CLIENT, ROUTER4, 53)),
        (False, udp(OTHER, ROUTER4, 53)),
        (False, udp(CLIENT, ROUTER4, 54)),
        (True, icmp(CLIENT, ROUTER4, 8)),
        (True, other(CLIENT, ROUTER4, 47)),
        (False, other(OTHER, ROUTER4, 47)),
        (False, icmp(CLIENT, ROUTER4, 13)),
        (False, icmp(CLIENT, ROUTER4, 0)),
        (False, icmp(CLIENT6, ROUTER6, 129)),
        (True, udp(CLIENT, ROUTER4, 68, source_port=67)),
        (False, udp(CLIENT, ROUTER4, 67, source_port=68)),
        (True, udp(CLIENT6, ROUTER6, 546, source_port=547)),
        (True, icmp(CLIENT6, ROUTER6, 136)),
        (True, icmp(CLIENT6, ROUTER6, 134)),
        (False, icmp(CLIENT6, ROUTER6, 133)),
        (False, error_about(udp(ROUTER4, CLIENT, 4000), source=OTHER)),
    ],
    ids=str,
)
async def test_what_comes_to_the_host_gets_what_the_rules_say(host: Rig, passes: bool, packet: Packet) -> None:
    assert engine_allows(host, packet) is passes
    assert taken(host, packet) is passes


@pytest.mark.parametrize(
    ("passes", "packet"),
    [
        (True, udp(ROUTER4, CLIENT, 53)),
        (False, udp(ROUTER4, CLIENT, 54)),
        (True, udp(ROUTER6, CLIENT6, 53)),
        (False, udp(ROUTER6, CLIENT6, 54)),
        (False, tcp(ROUTER4, CLIENT, 80)),
        (False, tcp(ROUTER4, CLIENT, 80, SYN_ACK, source_port=80)),
        (True, icmp(ROUTER4, CLIENT, 8)),
        (False, icmp(ROUTER4, CLIENT, 13)),
        (True, udp(ROUTER4, CLIENT, 67, source_port=68)),
        (False, udp(ROUTER4, CLIENT, 68, source_port=67)),
        (True, udp(ROUTER6, CLIENT6, 547, source_port=546)),
        (False, udp(ROUTER6, CLIENT6, 546, source_port=547)),
        (True, icmp(ROUTER6, CLIENT6, 135)),
        (True, icmp(ROUTER6, CLIENT6, 136)),
        (False, icmp(ROUTER6, CLIENT6, 134)),
    ],
    ids=str,
)
async def test_what_the_host_sends_gets_what_the_rules_say(host: Rig, passes: bool, packet: Packet) -> None:
    assert engine_allows(host, packet) is passes
    assert sent(host, packet) is passes


@pytest.mark.parametrize(
    ("passes", "packet"),
    [
        (True, tcp(ROUTER4, WEB4, 80)),
        (False, tcp(ROUTER4, WEB4, 81)),
        (False, udp(ROUTER4, WEB4, 53)),
        (True, tcp(ROUTER6, WEB6, 80)),
    ],
    ids=str,
)
async def test_what_the_host_sends_to_a_server_behind_it_needs_both(host: Rig, passes: bool, packet: Packet) -> None:
    assert engine_allows(host, packet) is passes
    assert sent(host, packet, "web") is passes


@pytest.mark.parametrize(
    ("passes", "packet"),
    [(True, tcp(WEB4, ROUTER4, 80)), (False, tcp(WEB4, ROUTER4, 443)), (True, tcp(WEB6, ROUTER6, 80))],
    ids=str,
)
async def test_what_a_server_sends_to_its_host_needs_both(host: Rig, passes: bool, packet: Packet) -> None:
    assert engine_allows(host, packet) is passes
    assert taken(host, packet, "web") is passes


@pytest.mark.parametrize(("address", "peer"), [(ROUTER4, CLIENT), (ROUTER6, CLIENT6)])
@pytest.mark.parametrize("opener", ["client", "host"])
async def test_a_connection_of_the_host_stops_and_goes_on(host: Rig, speaking: World, address: str, peer: str, opener: str) -> None:
    rules = [allow("h1", protocol=6, ports=80)] if opener == "client" else [allow("h1", EGRESS, protocol=6, ports=80)]
    await host.change(groups={"host": rules})
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    ours, theirs = socket.socket(family, socket.SOCK_STREAM), speaking.socket("client", family, socket.SOCK_STREAM)
    listening, asking, where = (ours, theirs, address) if opener == "client" else (theirs, ours, peer)
    with listening, asking:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((where, 80))
        listening.listen()
        asking.settimeout(10)
        asking.bind((peer if opener == "client" else address, 0))
        asking.connect((where, 80))
        serving, _ = listening.accept()
        with serving:
            serving.settimeout(10)
            here, there = (serving, asking) if opener == "client" else (asking, serving)
            here.sendall(b"before")
            assert there.recv(100) == b"before"
            speaking.settle("web", "client")
            await host.change(groups={"host": []})
            here.sendall(b"meanwhile")
            assert all(b"meanwhile" not in packet for packet in speaking.settle("web", "client"))
            await host.change(groups={"host": rules})
            assert await asyncio.to_thread(there.recv, 100) == b"meanwhile"


async def test_the_host_says_that_a_port_is_closed_to_those_who_may_ask_alone(host: Rig) -> None:
    for passes, port in ((True, 53), (False, 54)):
        client = host.world.wires["client"]
        client.drain()
        client.send(frame(udp(CLIENT, ROUTER4, port, source_port=41_000)))
        # Destination unreachable (RFC 792).
        assert [icmp_type_of(packet) for packet in host.world.settle("web", "client")] == ([3] if passes else [])


@pytest.mark.parametrize("opening", [tcp(CLIENT, WEB4, 80), tcp(CLIENT6, WEB6, 80)], ids=["IPv4", "IPv6"])
async def test_the_host_says_as_a_router_what_went_wrong_with_the_connections_of_others(host: Rig, opening: Packet) -> None:
    assert host.agree(opening)
    assert host.agree(reply(opening, tcp_flags=SYN_ACK))
    there = replace(opening, tcp_flags=ACK)
    assert host.agree(there)
    client = host.world.wires["client"]
    client.drain()
    client.send(with_hops(frame(there), 1))
    # Time exceeded (RFC 792, RFC 4443).
    assert [icmp_type_of(packet) for packet in host.world.settle("web", "client")] == [11 if opening.source.version == 4 else 3]


def icmp_type_of(packet: bytes) -> int:
    return packet[20] if packet[0] >> 4 == 4 else packet[40]


def with_hops(packet: bytes, hops: int) -> bytes:
    """Return an IP packet with another hop limit."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([hops]) + packet[8:]
    head = packet[:8] + bytes([hops]) + packet[9:10] + b"\0\0" + packet[12:20]
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + packet[20:]


async def test_nobody_outside_has_the_hosts_address(host: Rig) -> None:
    await host.change(groups={"web": [allow("all"), allow("out", EGRESS)]})
    assert not host.world.passes("client", frame(udp(ROUTER4, WEB4, 53)), "web")
    assert not host.world.passes("client", frame(udp(ROUTER6, WEB6, 53)), "web")


async def test_the_host_talks_to_itself_whatever_the_rules_say(host: Rig) -> None:
    await host.change(groups={"host": []})
    for family, address in ((socket.AF_INET, ROUTER4), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, ROUTER6)):
        with socket.socket(family, socket.SOCK_STREAM) as listening, socket.socket(family, socket.SOCK_STREAM) as asking:
            listening.bind((address, 0))
            listening.listen()
            asking.settimeout(10)
            asking.connect(listening.getsockname()[:2])


async def test_the_host_finds_its_neighbours_and_is_found_whatever_the_rules_say(host: Rig) -> None:
    await host.change(groups={"host": [allow("h5", EGRESS, protocol=17)]})
    host.world.wires["web"].send(solicitation(WEB6, ROUTER6))
    assert [packet[40] for packet in host.world.settle("client", "web")] == [ADVERTISEMENT]
    run("ip", "-n", host.world.router, "route", "add", "2001:db8::77", "dev", "to-web")
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as link:
            link.bind((ROUTER6, 0))
            link.sendto(b"?", ("2001:db8::77", 53))
        assert [packet[40] for packet in host.world.settle("client", "web")] == [SOLICITATION]
    finally:
        run("ip", "-n", host.world.router, "route", "delete", "2001:db8::77")


def solicitation(source: str, target: str) -> bytes:
    """Return a neighbour solicitation to ``target`` (RFC 4861, section 4.3)."""
    ends = ip_address(source).packed + ip_address(target).packed
    body = struct.pack(">BBHI", SOLICITATION, 0, 0, 0) + ip_address(target).packed
    summed = checksum(ends + struct.pack(">IHBB", len(body), 0, 0, ICMPV6) + body)
    return struct.pack(">IHBB", 6 << 28, len(body), ICMPV6, 255) + ends + body[:2] + struct.pack(">H", summed) + body[4:]
