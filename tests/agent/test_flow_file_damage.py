"""Entries of a flow table's file that make no sense: nothing breaks, they are dropped, and the others go on."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from agent_world import ACK, ANY_EGRESS, CLIENT, CLIENT6, DB, DNS, FIRST, LATER, SECOND, SSH, WEB, Packet, icmp, reply, tcp, udp
from kept_world import FLOW_BYTES, FLOWS_AT, KeptWorld

from secgroups.agent.flow_messages import flow_message

MINE, MINE6 = "10.0.0.9", "2001:db8::9"
LOGIN = tcp(CLIENT, MINE, 22)
FLOWS = 40

# Where an entry holds what, and what no flow has there.
REMOTE, ENDPOINT, REMOTE_PORT, DEADLINE, RULE, SEEN, PROTOCOL, STATUS = 0, 16, 22, 24, 36, 40, 44, 45
NONSENSE: list[tuple[str, int, bytes]] = [
    ("an endpoint that there is not", ENDPOINT, b"\xff\xff\xff\xff"),
    ("an endpoint that is nobody's", ENDPOINT, (100).to_bytes(4, "little")),
    ("no rule", RULE, bytes(4)),
    ("a rule that there is not", RULE, b"\xff\xff\xff\xff"),
    ("a rule that has no name", RULE, (60).to_bytes(4, "little")),
    ("a state that there is not", STATUS, b"\x0f"),
    ("a flag that is not its own", STATUS, b"\xb4"),
    ("no port", REMOTE_PORT, bytes(2)),
    ("no state", STATUS, b"\x20"),
    ("a state of another protocol", STATUS, b"\x3b"),
    ("a protocol of another state", PROTOCOL, b"\x11"),
    ("a time that is over", DEADLINE, (1).to_bytes(8, "little")),
    ("a time that no flow has", DEADLINE, b"\xff" * 8),
    ("an end of another family", REMOTE, b"\x20"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flows"


def write(file: Path, at: int, content: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(content)


@pytest.mark.parametrize(("at", "content"), [case[1:] for case in NONSENSE], ids=[case[0] for case in NONSENSE])
def test_an_entry_that_makes_no_sense_is_dropped_and_its_neighbour_goes_on(file: Path, at: int, content: bytes) -> None:
    world = KeptWorld(file, SSH)
    neighbour = replace(LOGIN, source_port=2)
    world.connect(LOGIN)
    world.connect(neighbour)
    held = world.down()
    write(file, FLOWS_AT + at, content)
    world.up(held)
    assert len(world.table) == 1
    assert world.reasons(replace(LOGIN, tcp_flags=ACK), replace(neighbour, tcp_flags=ACK)) == ["INVALID_STATE", "ESTABLISHED"]
    assert world.reason(LOGIN).name == "NEW"
    world.reopen()
    assert (len(world.table), world.table.dropped) == (2, 0)


def test_of_two_entries_of_one_flow_one_is_dropped(file: Path) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    world.connect(replace(LOGIN, source_port=2))
    held = world.down()
    entry = file.read_bytes()[FLOWS_AT : FLOWS_AT + FLOW_BYTES]
    write(file, FLOWS_AT + FLOW_BYTES, entry)
    world.up(held)
    assert (len(world.table), world.table.dropped) == (1, 1)
    assert world.reason(replace(LOGIN, tcp_flags=ACK)).name == "ESTABLISHED"


def test_ages_that_no_flow_can_have_become_none(file: Path) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    held = world.down()
    write(file, FLOWS_AT + SEEN, b"\xff\xff\xff\x7f")
    world.up(held)
    (flow,) = world.firewall.live(world.now_ns)
    assert 0 <= world.now_ns - flow.seen_ns < SECOND


def populated(file: Path) -> tuple[KeptWorld, list[Packet]]:
    """Return a world with answered flows of all kinds, and a packet of each."""
    world = KeptWorld(file, SSH, DNS, ANY_EGRESS, flows_max=64, shards=2)
    world.bind(WEB, "db")
    said: list[Packet] = []
    for number in range(FLOWS // 4):
        openings = (
            tcp(CLIENT, MINE, 22, source_port=1000 + number),
            udp(CLIENT6, MINE6, 53, source_port=1000 + number),
            udp("10.0.0.5", CLIENT, 9, source_port=1000 + number),
            icmp(MINE, CLIENT, 8, icmp_id=number),
        )
        for opening in openings:
            world.advance(0.02)
            world.open_answered(opening)
            said.append(reply(opening, tcp_flags=ACK) if opening.protocol == 6 else reply(opening))
        world.decide(udp(CLIENT, MINE, 53, fragment=FIRST, fragment_id=number, source_port=number + 1))
    return world, said


def damaged(chance: random.Random, table: bytes) -> bytes:
    """Return a table in which some bytes, words or stretches are others."""
    spoiled = bytearray(table)
    for _ in range(chance.choice([1, 3, 30, 300])):
        size = chance.choice([1, 1, 2, 4, 8, 64])
        at = chance.randrange(len(spoiled) - size)
        if chance.random() < 0.7:
            # Where there is something.
            at = chance.choice([0, len(spoiled) // 2]) + chance.randrange(FLOWS * FLOW_BYTES)
        spoiled[at : at + size] = chance.choice([chance.randbytes(size), b"\xff" * size, bytes(size), b"\x01" * size])
    return bytes(spoiled[: len(table)])


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_file_holds_the_agent_works_and_what_makes_sense_goes_on(file: Path, seed: int) -> None:
    chance = random.Random(seed)
    world, said = populated(file)
    held, now_ns = world.down(), world.now_ns
    table = file.read_bytes()[FLOWS_AT:]
    for _ in range(60):
        world.now_ns = now_ns
        write(file, FLOWS_AT, damaged(chance, table))
        world.up(held, judged=chance.random() < 0.5)
        assert world.table.check(world.now_ns) == []
        flows = list(world.firewall.live(world.now_ns))
        assert len(flows) == len(world.table) == world.table.held_by(DB) + world.table.held_by(WEB) <= 64
        for flow in flows:
            flow_message(flow, world.now_ns)
        assert sum(world.firewall.stats(world.now_ns).flows_by_state.values()) == len(flows)
        reasons = [world.firewall.decide(asked, world.now_ns).reason.name for asked in said]
        assert set(reasons) <= {"ESTABLISHED", "REVOKED", "NO_RULE", "INVALID_STATE", "NEW", "TABLE_FULL"}
        for number in range(FLOWS // 4):
            part = udp(CLIENT, MINE, 0, fragment=LATER, fragment_id=number, source_port=0)
            world.firewall.decide(part, world.now_ns)
        # New flows and time to come: every list is walked.
        for number in range(80):
            world.firewall.decide(udp(CLIENT, MINE, 53, source_port=5000 + number), world.now_ns)
            world.firewall.decide(udp(CLIENT, MINE, 53, fragment=FIRST, fragment_id=5000 + number), world.now_ns)
        world.advance(1_000_000)
        assert world.flow_count() == 0
        for number in range(80):
            world.firewall.decide(udp("10.0.0.5", CLIENT, 53, source_port=6000 + number), world.now_ns)
        assert len(world.table) <= 64
        assert world.table.check(world.now_ns) == []
        world.down()


def test_flows_that_were_not_touched_go_on(file: Path) -> None:
    chance = random.Random(9)
    world, said = populated(file)
    held = world.down()
    table = file.read_bytes()[FLOWS_AT:]
    shard = len(table) // 2
    for _ in range(60):
        touched = chance.sample(range(FLOWS), FLOWS // 2)
        spoiled = bytearray(table)
        for entry in touched:
            at = (entry % 2) * shard + entry // 2 * FLOW_BYTES + chance.randrange(FLOW_BYTES)
            spoiled[at] ^= 1 << chance.randrange(8)
        write(file, FLOWS_AT, bytes(spoiled))
        world.up(held)
        alive = sum(world.firewall.decide(asked, world.now_ns).reason.name == "ESTABLISHED" for asked in said)
        assert alive >= FLOWS // 2 - 4
        world.down()


def test_a_whole_table_of_noise_is_an_empty_one(file: Path) -> None:
    world, said = populated(file)
    held = world.down()
    write(file, FLOWS_AT, os.urandom(file.stat().st_size - FLOWS_AT))
    world.up(held)
    assert len(world.table) == 0
    assert world.firewall.decide(said[0], world.now_ns).reason.name == "INVALID_STATE"
