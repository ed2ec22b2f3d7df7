"""What is removed stops the next packet of a connection, what comes back lets it go on, and nothing else loses a packet."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, error_about, icmp, reply, tcp, udp
from netns import World
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.kernel.marks import MarkLayout
from secgroups.agent.kernel.settings import KernelSettings

WEB4, DB4, WEB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
HTTP = allow("http", protocol=6, ports=80)
DNS = allow("dns", protocol=17, ports=53)
OUT = allow("out", EGRESS)
OPENINGS = [
    tcp(CLIENT, WEB4, 80),
    tcp(CLIENT6, WEB6, 80),
    udp(CLIENT, WEB4, 53),
    udp(CLIENT6, WEB6, 53),
    icmp(CLIENT, WEB4, 8),
    icmp(CLIENT6, WEB6, 128),
]


@pytest.mark.parametrize("opening", OPENINGS, ids=lambda packet: f"IPv{packet.source.version} {packet.protocol}")
@pytest.mark.parametrize("first", ["opener", "answerer"])
async def test_a_removed_rule_stops_both_directions_and_its_return_lets_the_flow_go_on(rig: Rig, opening, first: str) -> None:
    rules = [HTTP, DNS, allow("ping", protocol=1), OUT]
    await rig.change(groups={"web": rules}, servers={WEB: ["web"]})
    await rig.stamped()
    there = opening
    back = reply(opening, tcp_flags=SYN_ACK if opening.protocol == 6 else 0)
    assert rig.agree(there)
    assert rig.agree(back)
    if opening.protocol == 6:
        there = tcp(str(opening.source), str(opening.destination), 80, ACK)
        back = reply(opening, tcp_flags=ACK)
        assert rig.agree(there)
    order = (there, back) if first == "opener" else (back, there)
    await rig.change(groups={"web": [OUT]})
    for packet in (*order, *order):
        assert not rig.agree(packet)
    await rig.change(groups={"web": rules})
    for packet in (*order, *order):
        assert rig.agree(packet)


async def test_a_member_that_leaves_is_stopped_and_one_that_joins_is_let_in(rig: Rig) -> None:
    await rig.change(groups={"db": [allow("d", protocol=17, ports=53, group="friends")]}, servers={DB: ["db"]})
    await rig.stamped()
    opening = udp(CLIENT, DB4, 53)
    assert not rig.agree(opening)
    await rig.change(members={"friends": [CLIENT, OTHER]})
    assert rig.agree(opening)
    assert rig.agree(reply(opening))
    await rig.change(members={"friends": [OTHER]})
    assert not rig.agree(opening)
    assert not rig.agree(reply(opening))
    assert rig.agree(udp(OTHER, DB4, 53))
    await rig.change(members={"friends": [CLIENT]})
    assert rig.agree(reply(opening))


async def test_a_group_that_is_detached_is_not_asked_any_more(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP], "dns": [DNS]}, servers={WEB: ["web", "dns"]})
    await rig.stamped()
    opening = udp(CLIENT, WEB4, 53)
    assert rig.agree(opening)
    await rig.change(servers={WEB: ["web"]})
    assert not rig.agree(opening)
    assert rig.agree(tcp(CLIENT, WEB4, 80))
    await rig.change(servers={WEB: ["web", "dns"]})
    assert rig.agree(opening)


async def test_an_error_about_a_connection_follows_it(rig: Rig) -> None:
    rules = [allow("u", protocol=17, ports=4000), allow("o", EGRESS, protocol=17)]
    await rig.change(groups={"web": rules}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(CLIENT, WEB4, 4000)
    assert rig.agree(opening)
    unreachable = error_about(opening, source=WEB4)
    assert rig.agree(unreachable)
    await rig.change(groups={"web": []})
    assert not rig.agree(unreachable)
    await rig.change(groups={"web": rules})
    assert rig.agree(unreachable)


async def test_an_error_about_no_connection_needs_a_rule(rig: Rig) -> None:
    await rig.change(groups={"web": [OUT]}, servers={WEB: ["web"]})
    stray = error_about(udp(WEB4, CLIENT, 4000), source="198.51.100.1")
    assert not rig.passes(stray)
    await rig.change(groups={"web": [OUT, allow("e", protocol=1, icmp=(3, None))]})
    assert rig.passes(stray)


async def test_another_servers_error_does_not_ride_on_a_connection(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP, DNS], "none": []}, servers={WEB: ["web"], DB: ["none"]})
    opening = udp(CLIENT, WEB4, 53)
    assert rig.agree(opening)
    assert not rig.agree(error_about(opening, source=DB4))


async def test_changes_that_concern_others_lose_no_packet(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP, DNS], "db": []}, servers={WEB: ["web"], DB: ["db"]})
    await rig.stamped()
    kept, opened = udp(CLIENT, WEB4, 53), udp(OTHER, WEB4, 53)
    assert rig.passes(kept)
    assert rig.passes(opened)
    for turn in range(40):
        # Rules of the same server, of another, members, bindings: nothing of it is about these two.
        match turn % 4:
            case 0:
                await rig.change(groups={"web": [DNS] if turn % 8 else [HTTP, DNS]})
            case 1:
                await rig.change(groups={"db": [allow(f"d{turn}", group="friends")]})
            case 2:
                await rig.change(members={"friends": [f"192.0.2.{turn}"]})
            case 3:
                await rig.change(servers={DB: ["db", "web"] if turn % 8 == 3 else ["db"]})
        assert rig.passes(kept)
        assert rig.passes(reply(opened))


async def test_epochs_that_run_out_are_begun_again(rig: Rig) -> None:
    rig.settings(KernelSettings(marks=MarkLayout(0x0FF0)))
    await rig.change(groups={"web": [HTTP, DNS]}, servers={WEB: ["web"]})
    await rig.stamped()
    kept, cut = udp(CLIENT, WEB4, 53), tcp(CLIENT, WEB4, 80)
    assert rig.agree(cut)
    for turn in range(50):
        # 15 epochs for each direction; every second state lets the other connection through.
        await rig.change(groups={"web": [DNS, HTTP] if turn % 2 else [DNS]})
        assert rig.passes(kept)
        assert rig.passes(cut) is bool(turn % 2)
    await rig.stamped()
    assert rig.passes(kept)


@pytest.fixture
def speaking(world: World) -> Iterator[World]:
    world.silence(False)
    try:
        yield world
    finally:
        world.silence(True)


@pytest.mark.parametrize(("server", "client"), [(WEB4, CLIENT), (WEB6, CLIENT6)])
async def test_a_running_download_stops_and_goes_on(rig: Rig, speaking: World, server: str, client: str) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    listening, asking = (speaking.socket(host, family, socket.SOCK_STREAM) for host in ("web", "client"))
    with listening, asking:
        listening.bind((server, 80))
        listening.listen()
        asking.bind((client, 0))
        asking.connect((server, 80))
        serving, _ = listening.accept()
        with serving:
            serving.sendall(b"before")
            assert asking.recv(100) == b"before"
            speaking.settle("web", "client")
            await rig.change(groups={"web": []})
            serving.sendall(b"meanwhile")
            # What the server sends from now on is dropped, in this order, before the probe passes.
            assert all(b"meanwhile" not in packet for packet in speaking.settle("web", "client"))
            await rig.change(groups={"web": [HTTP]})
            serving.setblocking(False)
            assert await asyncio.to_thread(asking.recv, 100) == b"meanwhile"
