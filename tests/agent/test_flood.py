"""A SYN flood of ten million packets at one server of a table of default size takes that server's new flows, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from agent_world import ACK, ANY_EGRESS, DB, DNS, SECOND, SSH, WEB, World, reply, tcp, udp

from secgroups.agent.flow import Packet, Reason
from secgroups.agent.records import pack, record_dtype, verdict_dtype
from secgroups.agent.tracking import Flow

FLOOD_PACKETS = 10_000_000
BATCH = 50_000
PEOPLE = 2_000
FLOOD_BYTES_MAX = 4 * 1_048_576
MINE, WEB4 = "10.0.0.9", "10.0.0.5"
# A million packets a second.
BATCH_NS = BATCH * 1_000


def resident_bytes() -> int:
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * 4_096


class Flood:
    """SYNs from random addresses and ports to one address, made in place."""

    def __init__(self, world: World) -> None:
        handle = world.firewall.server_handle
        self._records = np.frombuffer(pack(tcp("203.0.113.1", MINE, 22), handle(DB))[0] * BATCH, record_dtype()).copy()
        self._rng = np.random.default_rng(7)

    def next(self) -> np.ndarray:
        # Sources 128.0.0.0 to 191.255.255.255: none of them is for many, or anybody who has a connection.
        self._records["source"][:, 12:] = self._rng.integers(0, 256, (BATCH, 4), np.uint8)
        self._records["source"][:, 12] = 0x80 | (self._records["source"][:, 12] & 0x3F)
        self._records["source_port"] = self._rng.integers(1_024, 65_536, BATCH, np.uint16)
        return self._records


def asker(world: World, packets: list[Packet]) -> Callable[[], set[int]]:
    """Return what asks about all of ``packets`` and tells the reasons given."""
    records = b"".join(pack(each, world.firewall.server_handle(each.server))[0] for each in packets)
    verdicts = np.zeros(len(packets), verdict_dtype())

    def ask() -> set[int]:
        world.firewall.decide_many(records, world.now_ns, verdicts)
        return set(np.unique(verdicts["reason"]).tolist())

    return ask


def test_a_flood_of_ten_million_leaves_memory_flat_answered_flows_alive_and_other_servers_undisturbed():
    world = World("compiled", SSH, DNS, ANY_EGRESS)
    world.bind(WEB, "db")
    logins = [tcp("192.0.2.7", at, 22, source_port=10_000 + number) for at in (MINE, WEB4) for number in range(PEOPLE)]
    for login in logins:
        world.firewall.decide(login, world.now_ns)
        world.firewall.decide(reply(login, tcp_flags=login.tcp_flags | ACK), world.now_ns)
        world.firewall.decide(replace(login, tcp_flags=ACK), world.now_ns)
    going_on = asker(world, [each for login in logins for each in (replace(login, tcp_flags=ACK), reply(login, tcp_flags=ACK))])
    flood, verdicts = Flood(world), np.zeros(BATCH, verdict_dtype())
    held_bytes, batches, opened = 0, FLOOD_PACKETS // BATCH, 0
    for number in range(batches):
        world.firewall.decide_many(flood.next(), world.now_ns, verdicts)
        opened += int(verdicts["flags"].sum())
        world.now_ns += BATCH_NS
        if number % 20 == 19:
            assert going_on() == {Reason.ESTABLISHED}
            # Somebody new comes to the other server, every time from another port.
            query = udp("192.0.2.8", WEB4, 53, source_port=1_024 + number)
            assert world.decide(query).opened
            assert world.reason(reply(query)) is Reason.ESTABLISHED
        if number == batches // 10:
            # All of the server's share has been in use, several times.
            held_bytes = resident_bytes()
    assert resident_bytes() - held_bytes < FLOOD_BYTES_MAX
    assert opened == FLOOD_PACKETS
    table, stats = world.firewall.flows, world.firewall.stats(world.now_ns)
    assert table.held_by(DB) == stats.server_flows_max
    assert table.held_by(WEB) == PEOPLE + batches // 20
    assert stats.evicted_answered == 0
    assert stats.verdicts[Reason.NEW] == FLOOD_PACKETS + len(logins) + batches // 20
    assert table.check(world.now_ns) == []
    # What the flood had begun is over two minutes later, and so is what was asked by UDP; connections are not.
    world.now_ns += 121 * SECOND
    assert world.flow_count() == len(logins)
    assert going_on() == {Reason.ESTABLISHED}


def test_a_table_that_is_full_finds_every_flow_and_forgets_every_one_that_is_over():
    # Full, so that many a chunk of the index is, and flows lie in the ones behind it.
    world = World("compiled", DNS, flows_max=4_000, server_flows_max=4_000)
    rng = np.random.default_rng(11)
    for _ in range(12):
        numbers = rng.choice(60_000, 3_000, replace=False)
        queries = [udp("192.0.2.7", MINE, 53, source_port=1_024 + int(number)) for number in numbers]
        assert asker(world, queries)() <= {Reason.NEW, Reason.ESTABLISHED, Reason.TABLE_FULL}
        world.now_ns += 11 * SECOND
        assert world.firewall.flows.check(world.now_ns) == []
        assert asker(world, [flow_answer(flow) for flow in world.firewall.live(world.now_ns)])() == {Reason.ESTABLISHED}
        world.now_ns += int(rng.integers(0, 130)) * SECOND
    world.now_ns += 200 * SECOND
    assert world.decide(udp("192.0.2.8", MINE, 53)).opened
    assert world.firewall.flows.check(world.now_ns) == []


def flow_answer(flow: Flow) -> Packet:
    """Return what the server answers to the opener of a UDP flow."""
    return udp(MINE, "192.0.2.7", flow.key.remote_port, source_port=53)
