"""The figures of a table with many flows are counted in slices: they are the same, and nobody waits for long."""

from __future__ import annotations

import asyncio

import pytest
from agent_world import DNS, SSH, World, many_of, reply, tcp, udp

from secgroups.agent.figures import stats_of

# The core counts so many entries at once.
SLICE_FLOWS = 4_096
FLOWS = 3 * SLICE_FLOWS + 10
DESTINATION = "10.0.0.9"


def full_world(engine: str, **settings: object) -> World:
    """Return a world with ``FLOWS`` flows, of which some are answered, some revoked, and some over."""
    world = World(engine, DNS, SSH, **settings)
    over = [udp("203.0.113.1", DESTINATION, 53, source_port=1_000 + number) for number in range(10)]
    many_of(world, *over)
    world.advance(60)
    queries = [udp("203.0.113.2", DESTINATION, 53, source_port=1_000 + number) for number in range(FLOWS - 20)]
    connections = [tcp("203.0.113.3", DESTINATION, 22, source_port=1_000 + number) for number in range(10)]
    many_of(world, *queries, *connections, *map(reply, queries[:100]))
    world.set_rules(DNS)
    many_of(world, *connections[:4])
    return world


@pytest.mark.parametrize("shards", [1, 3])
def test_figures_that_are_counted_in_slices_are_those_of_the_whole(engine, shards):
    world = full_world(engine, **({"shards": shards} if engine == "compiled" else {}))
    stats = world.firewall.stats(world.now_ns)
    assert stats.flows_by_state == {"UNANSWERED": FLOWS - 120, "ANSWERED": 100, "SYN_SENT": 6, "REVOKED": 4}
    assert stats.flows == FLOWS - 10
    *_, counted = world.firewall.counting_stats(world.now_ns)
    assert counted == stats


async def test_others_have_their_turn_while_flows_are_counted():
    world = full_world("compiled")
    turns = 0

    async def ask() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    asking = asyncio.create_task(ask())
    stats = await stats_of(world.firewall, world.now_ns)
    asking.cancel()
    assert stats == world.firewall.stats(world.now_ns)
    assert turns >= FLOWS // SLICE_FLOWS
