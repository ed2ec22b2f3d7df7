"""A server that moves is never without its rules: the new agent has it in force before the old one lets go."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from stream_world import Agent, Kind, World, allow, members, mentioned, ops

from secgroups.controller.model import PREVIOUS_AGENTS_MAX

SERVER = "server/p/s1"


@pytest.fixture
def agents(world: World) -> tuple[Agent, Agent]:
    """Two agents in step, the first of which guards s1."""
    world.server("s1", "a", [world.group("web", allow(80))])
    first, second = Agent(world, "a").connect(), Agent(world, "b").connect()
    first.pump(), second.pump()
    return first, second


def test_the_old_agent_lets_go_when_the_new_one_has_acknowledged(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    world.move("s1", "b")
    assert first.pump() == []
    second.send()
    second.apply()
    assert first.pump() == []
    assert SERVER in first.holds & second.holds
    second.ack()
    assert [kind for kind, _ in mentioned(first.step())] == ["-server", "-group"]
    assert SERVER not in first.holds


def test_a_revision_is_in_force_when_the_old_agent_has_let_go_too(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    world.move("s1", "b")
    moved = world.revision
    assert world.lagging() == {"a": "not acknowledged yet", "b": "not acknowledged yet"}
    assert first.pump() == []
    assert world.lagging() == {"a": "still guards p/s1 until b has it in force", "b": "not acknowledged yet"}
    second.pump()
    assert world.lagging() == {"a": "not acknowledged yet"}
    assert world.publisher.in_force(moved).agents_touched == 2
    first.pump()
    assert world.lagging() == {}
    assert world.publisher.in_force(moved).commit_to_in_force_us == 0


def test_what_touches_the_old_agent_otherwise_does_not_wait_for_the_move(world: World, agents: tuple[Agent, Agent]) -> None:
    first, _ = agents
    world.server("s2", "a", [world.group("other")])
    world.move("s1", "b")
    world.server("s3", "a", [])
    first.pump()
    assert world.lagging() == {}
    assert "a" in world.lagging(world.revision - 1)


def test_the_old_agent_hears_of_changes_while_it_waits(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    world.move("s1", "b")
    (group_id,) = first.replica.ruleset.groups
    world.do(ops.create_rules, group_id=group_id, specs=[allow(443)], bulk=False)
    assert mentioned(first.step()) == [("group", group_id)]
    second.pump()
    first.pump()
    assert SERVER not in first.holds


@pytest.mark.parametrize("change", [lambda world: world.do(ops.delete_server, server_id="s1"), lambda world: world.move("s1", "")])
def test_a_server_that_nobody_guards_any_more_is_let_go_at_once(world: World, agents: tuple[Agent, Agent], change) -> None:
    first, _ = agents
    world.move("s1", "b")
    change(world)
    first.pump()
    assert SERVER not in first.holds
    assert "a" not in world.lagging()


def test_a_server_that_moves_back_was_never_gone(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    world.move("s1", "b")
    world.move("s1", "a")
    assert first.pump() == []
    assert second.pump() == []
    assert SERVER in first.holds
    assert SERVER not in second.holds
    assert world.lagging() == {}


def test_a_server_that_moves_on_before_it_arrived_stays_where_it_is_held(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    third = Agent(world, "c").connect()
    third.pump()
    world.move("s1", "b")
    world.move("s1", "c")
    assert first.pump() == []
    assert second.pump() == []
    third.pump()
    first.pump()
    assert (SERVER in first.holds, SERVER in second.holds, SERVER in third.holds) == (False, False, True)


def test_an_old_agent_that_comes_back_keeps_only_what_it_holds(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    second.disconnect()
    world.move("s1", "b")
    first.disconnect()
    first.connect().pump()
    assert SERVER in first.holds
    first.disconnect()
    first.start()
    first.connect().pump()
    assert SERVER not in first.holds
    second.connect().pump()
    assert SERVER in second.holds
    assert world.lagging() == {}


@pytest.mark.parametrize("old_first", [True, False])
def test_a_move_outlives_the_controller(world: World, agents: tuple[Agent, Agent], *, old_first: bool) -> None:
    first, second = agents
    world.move("s1", "b")
    world.restart()
    for agent in (first, second) if old_first else (second, first):
        agent.connect().pump()
    assert SERVER in second.holds
    first.pump()
    assert SERVER not in first.holds
    assert world.lagging() == {}


@pytest.mark.parametrize("order", ["abc", "cab", "bac"])
def test_a_server_that_moves_on_before_it_arrived_stays_with_who_holds_it_though_the_controller_restarts(
    world: World, agents: tuple[Agent, Agent], order: str
) -> None:
    """Moved from a to b to c while b was away: only a holds it, and lets go when c has it in force."""
    first, second = agents
    second.disconnect()
    world.move("s1", "b")
    world.move("s1", "c")
    world.restart()
    third = Agent(world, "c")
    for name in order:
        {"a": first, "b": second, "c": third}[name].connect().pump()
        if "c" not in order[: order.index(name) + 1]:
            assert SERVER in first.holds
        assert SERVER not in second.holds
    first.pump()
    assert (SERVER in first.holds, SERVER in second.holds, SERVER in third.holds) == (False, False, True)
    assert world.lagging() == {}


def test_an_agent_that_lets_go_of_what_it_left_nobody_knows_when_has_no_revision_below_none(
    world: World, agents: tuple[Agent, Agent]
) -> None:
    first, second = agents
    second.disconnect()
    world.move("s1", "b")
    world.move("s1", "c")
    world.restart()
    first.connect().pump()
    Agent(world, "c").connect().pump()
    first.disconnect()
    first.connect()
    lags = {lag.agent_id: lag.applied_revision for lag in world.publisher.in_force(world.state.revision).lagging}
    assert lags == {"a": 0}
    first.pump()
    assert SERVER not in first.holds
    assert world.lagging() == {}


def test_an_old_agent_beyond_the_latest_is_let_go_early(world: World, agents: tuple[Agent, Agent]) -> None:
    first, _ = agents
    for number in range(PREVIOUS_AGENTS_MAX):
        world.move("s1", f"x{number}")
    first.disconnect()
    world.restart()
    first.connect().pump()
    assert SERVER in first.holds
    world.move("s1", "one-more")
    first.pump()
    assert SERVER not in first.holds


def test_a_new_agent_that_never_comes_leaves_the_server_with_the_old_one(world: World, agents: tuple[Agent, Agent]) -> None:
    first, _ = agents
    world.move("s1", "nobody")
    first.pump()
    assert SERVER in first.holds
    assert world.lagging() == {"a": "still guards p/s1 until nobody has it in force", "nobody": "not connected"}


def test_an_agent_that_rejects_the_server_does_not_release_the_old_one(world: World, agents: tuple[Agent, Agent]) -> None:
    first, second = agents
    world.move("s1", "b")
    update = second.send()[0]
    second.reject(update.servers[0].key)
    assert first.pump() == []
    assert SERVER in first.holds
    assert world.lagging()["b"].startswith("rejected server p/s1")
    world.do(ops.update_server, server_id="s1", name="words")
    assert second.pump() == []  # The same version is not sent again.


def test_a_move_is_in_force_when_every_earlier_holder_has_let_go(world: World, agents: tuple[Agent, Agent]) -> None:
    """Moved from a to b to c before b had it: neither move is in force while a guards the server."""
    first, second = agents
    world.move("s1", "b")
    to_b = world.revision
    world.move("s1", "c")
    to_c = world.revision
    first.pump(), second.pump()
    for revision in (to_b, to_c):
        assert world.lagging(revision)["a"] == "still guards p/s1 until c has it in force"
    third = Agent(world, "c").connect()
    third.pump()
    for revision in (to_b, to_c):
        assert world.lagging(revision) == {"a": "not acknowledged yet"}
    first.pump()
    assert SERVER not in first.holds
    assert (world.lagging(to_b), world.lagging(to_c)) == ({}, {})


def test_an_agent_is_remembered_to_hold_a_server_only_as_long_as_the_store_remembers_it(
    world: World, agents: tuple[Agent, Agent]
) -> None:
    first, _ = agents
    # The later ones are away, and come to guard it one after another.
    for number in range(PREVIOUS_AGENTS_MAX + 2):
        world.move("s1", f"away-{number}")
    first.pump()
    assert SERVER not in first.holds
    assert len(world.publisher.holders_of(["p/s1"])) <= PREVIOUS_AGENTS_MAX + 1


def test_the_old_agent_keeps_a_server_while_the_new_one_rejects_an_address_set_that_its_rules_name(
    world: World, agents: tuple[Agent, Agent]
) -> None:
    first, second = agents
    remote = world.group("remote")
    world.server("s9", "", [remote])
    (group_id,) = first.replica.ruleset.groups
    world.do(ops.create_rules, group_id=group_id, specs=[allow(443, members(remote))], bulk=False)
    first.pump()
    world.move("s1", "b")
    second.send()
    second.reject((Kind.SET, remote.id))
    assert first.pump() == []
    assert SERVER in first.holds
    assert world.lagging()["a"] == "still guards p/s1 until b has it in force"
    # A set that changes is sent anew.
    world.do(ops.update_server, server_id="s9", addresses=[ip_address("10.7.7.7")])
    second.pump()
    first.pump()
    assert SERVER not in first.holds
    assert world.lagging() == {}


def test_who_waits_for_a_deletion_is_not_told_that_it_is_in_force_though_its_server_comes_back_elsewhere(
    world: World, agents: tuple[Agent, Agent]
) -> None:
    """Deleted while its agent was away, then made again for another one: the first may guard what was deleted."""
    first, second = agents
    first.disconnect()
    world.do(ops.delete_server, server_id="s1")
    deleted = world.revision
    told: list[int] = []
    world.publisher.watch(deleted, lambda: told.append(deleted))
    world.server("s1", "b", [])
    second.pump()
    assert (told, world.lagging(deleted)) == ([], {"a": "not connected"})
    first.connect().pump()
    assert (told, world.lagging(deleted)) == ([deleted], {})
