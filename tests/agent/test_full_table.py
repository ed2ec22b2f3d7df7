"""What a full table of the compiled engine asks of one packet is bounded, whatever happened before."""

from __future__ import annotations

import secrets
import struct
from ipaddress import ip_address

import pytest
from agent_world import ANY_EGRESS, DB, DNS, WEB, World, reply, udp

from secgroups.agent.flow import Packet

MINE, WEB4 = "10.0.0.9", "10.0.0.5"
SEED = bytes(range(1, 65))
CHUNKS, CHUNK_FLOWS = 3, 15


def query(number: int, destination: str = MINE) -> Packet:
    return udp("203.0.113.7", destination, 53, source_port=1024 + number)


def folded(a: int, b: int) -> int:
    product = a * b
    return (product & (1 << 64) - 1) ^ (product >> 64)


def chunk_of(packet: Packet, endpoint: int) -> int:
    """Return where in the index the flow of a query belongs, as ``engine/table.pxi`` works it out."""
    seed = struct.unpack("<8Q", SEED)
    (remote,) = struct.unpack("<Q", b"\0\0\xff\xff" + ip_address(packet.source).packed)
    ends = endpoint | packet.destination_port << 32 | packet.source_port << 48
    hashed = folded(folded(remote ^ seed[0], ends ^ seed[1]) ^ seed[2], 17 << 32 ^ seed[3])
    return (hashed >> 32) * CHUNKS >> 32


def test_a_look_up_ends_though_every_part_of_the_index_was_full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_bytes", lambda count: SEED[:count])
    world = World("compiled", DNS, flows_max=22)
    endpoint = world.firewall.flows.guards[DB].endpoints[ip_address(MINE)]
    homes: list[list[Packet]] = [[], [], []]
    for number in range(200):
        homes[chunk_of(query(number), endpoint)].append(query(number))
    elsewhere: list[Packet] = []
    for home in homes:
        # One that went on from the chunk before stands in this one; the last of these finds it full and goes on itself.
        room = CHUNK_FLOWS - len(elsewhere[-1:])
        for number in range(room):
            assert world.decide(home[number]).opened
        world.open_answered(home[room])
        elsewhere.append(home[room])
        world.advance(31)
        assert all(world.reason(reply(each)).name == "ESTABLISHED" for each in elsewhere)
    assert world.decide(homes[0][40]).opened
    assert world.firewall.flows.check(world.now_ns) == []


def test_the_largest_gives_its_long_idle_flows_wherever_they_are() -> None:
    world = World("compiled", DNS, ANY_EGRESS, flows_max=128)
    world.bind(WEB, "db")
    for number in range(128):
        world.open_answered(query(number))
    world.advance(10)
    idle = range(0, 128, 16)
    for number in set(range(128)) - set(idle):
        world.reason(query(number))
    # A sample is looked at for each newcomer, and the next one goes on behind it.
    for number in range(4):
        assert world.decide(query(number, WEB4)).opened
        assert world.firewall.flows.check(world.now_ns) == []
    left = {flow.key.remote_port - 1024 for flow in world.firewall.flows.live(world.now_ns) if flow.key.server == DB}
    assert len(left) == 124
    assert left >= set(range(128)) - set(idle)


def test_flows_that_are_over_are_found_behind_many_that_were_renewed() -> None:
    world = World("compiled", DNS, ANY_EGRESS, server_flows_max=1_000)
    for number in range(1_000):
        world.open_answered(query(number))
    world.advance(100)
    for number in range(990):
        assert world.reason(query(number)).name == "ESTABLISHED"
    world.advance(25)
    explained = world.explain(query(5_000)).verdict.opened
    opened = [world.decide(query(5_000 + number)).opened for number in range(60)]
    # Nothing is over among the first that are looked at; all at one moment, it takes some packets to come to those that are.
    assert explained == opened[0]
    assert (opened[0], opened[-1]) == (False, True)
    assert world.firewall.flows.check(world.now_ns) == []
