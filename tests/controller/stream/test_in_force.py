"""How it stands with a revision, in every case: who counts, who is late and why, who waits, and what is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_world import Agent, World, allow, ops

from secgroups.controller.in_force import RevisionLog, Touched
from secgroups.controller.resume import Since
from secgroups.controller.stream_messages import HeldBack, Hello, Kind, ObjectKey

NOT_CONNECTED, BEHIND = "not connected", "not acknowledged yet"


@pytest.fixture
def agents(world: World) -> tuple[Agent, Agent]:
    """Agents a and b, in step; each guards a server in the group web."""
    web = world.group("web", allow(80))
    world.server("s1", "a", [web])
    world.server("s2", "b", [web])
    made = Agent(world, "a").connect(), Agent(world, "b").connect()
    for agent in made:
        agent.pump()
    return made


def change(world: World, port: int = 443) -> int:
    """Add a rule to web; return the revision."""
    web = world.state.group_by_name("p", "web")
    world.do(ops.create_rules, group_id=web.id, specs=[allow(port)], bulk=False)
    return world.revision


def in_force(world: World, revision: int) -> bool:
    """Ask in both ways, which must agree."""
    standing = world.publisher.in_force(revision)
    assert world.publisher.is_in_force(revision) == (not standing.lagging)
    return not standing.lagging


def delays(world: World) -> int:
    return sum(world.publisher.commit_to_in_force.counts)


def test_a_revision_that_touches_nobody_is_in_force(world: World, agents: tuple[Agent, Agent]) -> None:
    world.group("unused")
    standing = world.publisher.in_force(world.revision)
    assert (standing.agents_touched, standing.lagging, standing.commit_to_in_force_us) == (0, (), None)
    assert in_force(world, world.revision)


def test_each_change_has_one_delay_from_its_commit_to_the_last_acknowledgement(world: World, agents: tuple[Agent, Agent]) -> None:
    before, sum_before_us = delays(world), world.publisher.commit_to_in_force.sum_us
    change(world, 1)
    change(world, 2)
    world.now_us += 4_000
    agents[0].pump()
    assert delays(world) == before
    world.now_us += 3_000
    agents[1].pump()
    after = world.publisher.commit_to_in_force
    assert (sum(after.counts), after.sum_us) == (before + 2, sum_before_us + 2 * 7_000)


def test_who_waits_is_told_once_when_the_last_agent_has_it(world: World, agents: tuple[Agent, Agent]) -> None:
    told: list[str] = []
    first, second = change(world, 1), change(world, 2)
    for name, revision in (("first", first), ("also first", first), ("second", second), ("gone", second)):
        unwatch = world.publisher.watch(revision, lambda name=name: told.append(name))  # type: ignore[misc]
    unwatch()
    agents[0].pump()
    assert told == []
    agents[1].pump()
    assert told == ["first", "also first", "second"]
    change(world, 3)
    for agent in agents:
        agent.pump()
    assert len(told) == 3


def test_who_waits_for_a_revision_of_before_the_start_is_told_when_all_have_come(world: World, agents: tuple[Agent, Agent]) -> None:
    revision = world.revision
    world.restart()
    told: list[bool] = []
    unwatch = world.publisher.watch(revision, lambda: told.append(in_force(world, revision)))
    agents[0].connect().pump()
    assert (told, in_force(world, revision)) == ([], False)
    agents[1].connect().pump()
    assert told == [True]
    unwatch()


def test_an_agent_that_lost_what_it_had_is_late_again_and_waited_for(world: World, agents: tuple[Agent, Agent]) -> None:
    revision = change(world)
    for agent in agents:
        agent.pump()
    assert in_force(world, revision)
    agents[0].disconnect()
    agents[0].start()
    agents[0].connect()
    assert world.lagging(revision) == {"a": BEHIND}
    told: list[bool] = []
    world.publisher.watch(revision, lambda: told.append(in_force(world, revision)))
    agents[0].pump()
    assert told == [True]


def test_an_agent_whose_servers_went_to_another_one_is_not_waited_for(world: World, agents: tuple[Agent, Agent]) -> None:
    a, b = agents
    revision = change(world)
    a.disconnect()
    b.pump()
    told: list[int] = []
    world.publisher.watch(revision, lambda: told.append(revision))
    world.move("s1", "b")
    moved = world.revision
    # The new agent does not have the server yet: as long as that is so the old one counts.
    assert world.lagging(revision) == {"a": NOT_CONNECTED}
    assert told == []
    b.pump()
    assert (world.lagging(revision), world.lagging(moved), told) == ({}, {}, [revision])
    # Nobody knows when it was in force on the one that left.
    assert world.publisher.in_force(revision).commit_to_in_force_us is None
    assert world.publisher.find_status("a").pending_revisions > 0
    assert world.publisher.fleet().known == 1


def test_an_agent_that_is_away_counts_for_the_deletion_of_its_last_server_and_not_for_what_was_before(
    world: World, agents: tuple[Agent, Agent]
) -> None:
    a, b = agents
    b.disconnect()
    changed = change(world)
    a.disconnect()
    world.do(ops.delete_server, server_id="s1")
    deleted = world.revision
    assert world.lagging(changed) == {"b": NOT_CONNECTED}
    # It may let packets of the deleted server pass until it hears of it.
    (lag,) = world.publisher.in_force(deleted).lagging
    assert (lag.agent_id, lag.reason) == ("a", NOT_CONNECTED)
    assert "guards no server any more" in lag.obstacle.advice
    a.connect().pump()
    assert in_force(world, deleted)


def test_an_agent_id_that_was_mistyped_is_forgotten_with_its_correction(world: World, agents: tuple[Agent, Agent]) -> None:
    world.server("s3", "ghost", [])
    created = world.revision
    assert world.lagging(created) == {"ghost": NOT_CONNECTED}
    world.move("s3", "a")
    agents[0].pump()
    assert (world.lagging(created), world.lagging(world.revision)) == ({}, {})


@pytest.mark.parametrize("revisions_max", [1, 3])
def test_what_is_forgotten_is_in_force_only_when_everybody_is_up_to_date(
    world: World, agents: tuple[Agent, Agent], monkeypatch: pytest.MonkeyPatch, revisions_max: int
) -> None:
    monkeypatch.setattr("secgroups.controller.in_force.REVISIONS_MAX", revisions_max)
    a, b = agents
    first_us, first = world.now_us, change(world, 100)
    told: list[bool] = []
    world.publisher.watch(first, lambda: told.append(in_force(world, first)))
    for port in range(101, 110):
        world.now_us += 1_000
        change(world, port)
    # Who waits is told that it was forgotten, and asks anew.
    assert told == [False]
    status = world.publisher.find_status("a")
    assert (status.pending_revisions, status.lag_since_us) == (10, first_us)
    assert world.lagging(first) == {"a": BEHIND, "b": BEHIND}
    a.pump()
    status = world.publisher.find_status("a")
    assert (status.pending_revisions, status.lag_since_us) == (0, None)
    b.disconnect()
    assert world.lagging(first) == {"b": NOT_CONNECTED}
    b.connect().pump()
    assert in_force(world, first)


def test_a_forgotten_deletion_waits_for_the_agent_that_has_not_heard_of_it(
    world: World, agents: tuple[Agent, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secgroups.controller.in_force.REVISIONS_MAX", 1)
    a, b = agents
    a.disconnect()
    world.do(ops.delete_server, server_id="s1")
    deleted = world.revision
    change(world)
    b.pump()
    assert world.lagging(deleted) == {"a": NOT_CONNECTED}
    a.connect().pump()
    assert in_force(world, deleted)


def test_the_lag_of_an_agent_is_as_old_as_the_oldest_change_that_it_lacks(world: World, agents: tuple[Agent, Agent]) -> None:
    a, b = agents
    world.now_us += 1_000_000
    oldest_us = world.now_us
    change(world, 1)
    a.send()
    world.now_us += 500
    change(world, 2)
    assert world.publisher.find_status("a").lag_since_us == oldest_us
    fleet = world.publisher.fleet()
    assert (fleet.known, fleet.connected, fleet.lagging, fleet.oldest_lag_since_us) == (2, 2, 2, oldest_us)
    a.apply()
    a.ack()
    assert world.publisher.find_status("a").lag_since_us == oldest_us + 500
    a.pump()
    b.pump()
    assert world.publisher.find_status("a").lag_since_us is None
    fleet = world.publisher.fleet()
    assert (fleet.lagging, fleet.oldest_lag_since_us) == (0, None)


def test_an_agent_that_rejects_counts_as_lagging_behind_what_it_rejects(world: World, agents: tuple[Agent, Agent]) -> None:
    a, b = agents
    since_us = world.now_us = world.now_us + 5
    refused = change(world)
    b.pump()
    a.send()
    web = world.state.group_by_name("p", "web")
    a.reject((Kind.GROUP, web.id))
    status = world.publisher.find_status("a")
    assert (status.pending_revisions, status.lag_since_us) == (1, since_us)
    fleet = world.publisher.fleet()
    assert (fleet.lagging, fleet.rejecting) == (1, 1)
    told: list[int] = []
    world.publisher.watch(refused, lambda: told.append(refused))
    world.now_us += 5
    change(world, 444)
    a.pump()
    assert told == [refused]
    assert world.publisher.find_status("a").lag_since_us is None


def test_a_snapshot_that_is_held_back_is_shown_until_one_is_taken(world: World, agents: tuple[Agent, Agent]) -> None:
    a, _ = agents
    a.disconnect()
    revision = change(world)
    held_back = HeldBack(revision=7, servers_removed=40, servers_held=50, max_removal=0.25)
    hello = Hello(agent_id="a", boot_id="boot-1", held_back=held_back)
    channel = world.publisher.connect(hello, lambda: None, world.now_us)
    channel.next_messages(world.now_us)
    assert world.publisher.find_status("a").held_back == held_back
    assert world.publisher.fleet().holding_back == 1
    (lag,) = [lag for lag in world.publisher.in_force(revision).lagging if lag.agent_id == "a"]
    assert (lag.connected, lag.reason) == (True, "holds back a snapshot that would remove 40 of 50 servers")
    assert "--max-removal" in lag.obstacle.advice
    # It goes away as it came, and it is still known why.
    world.publisher.disconnect(channel)
    assert world.lagging(revision)["a"] == lag.reason
    a.connect().pump()
    assert world.publisher.find_status("a").held_back is None


def test_the_log_does_not_grow_with_agents_that_come_and_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.in_force.REVISIONS_MAX", 4)
    monkeypatch.setattr("secgroups.controller.in_force.SWEEP_MIN", 8)
    log = RevisionLog(0, lambda agent_id: agent_id == "agent-0")
    for revision in range(1, 1_000):
        log.add([Since(revision, revision)], [f"agent-{revision - 1}"], [(Kind.GROUP, "g")])
    assert (log.waiting("agent-0"), log.find_oldest_commit_us("agent-0")) == (1, 1)
    assert sum(log.waiting(f"agent-{number}") > 0 for number in range(1_000)) <= 16


def test_the_log_is_bounded_in_bytes_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.in_force.BYTES_MAX", 40_000)
    log = RevisionLog(0, lambda agent_id: True)
    for revision in range(1, 100):
        log.add([Since(revision, revision)], [f"{revision}-{number}" for number in range(200)], [])
    assert (log.knows(99), log.knows(98)) == (True, False)
    # What touches the same many agents again costs far less.
    shared = [f"agent-{number}" for number in range(200)]
    for revision in range(100, 125):
        log.add([Since(revision, revision)], shared, [])
    assert log.knows(101)


AGENTS = ("a", "b", "c", "d")
KEYS = tuple((Kind.GROUP, name) for name in "gh")
agent, key = st.sampled_from(AGENTS), st.sampled_from(KEYS)
step = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 3), st.frozensets(agent, min_size=1), st.frozensets(key, min_size=1), st.booleans()),
    st.tuples(st.just("settle"), agent, st.integers(0, 4), st.frozensets(key)),
    st.tuples(st.just("release"), agent),
)


class Both:
    """The same log twice: with crowds of two agents and more, and without any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.logs = {2: RevisionLog(0, lambda agent_id: True), 1_000: RevisionLog(0, lambda agent_id: True)}
        self.revision = 0
        self.rejected: dict[str, frozenset[ObjectKey]] = {}

    def take(self, verb: str, *arguments: Any) -> None:
        match verb, *arguments:
            case "add", count, agent_ids, keys, for_good:
                commits = [Since(self.revision + number, 10 * (self.revision + number)) for number in range(1, count + 1)]
                self.revision += count
                self.each(lambda log: log.add(commits, agent_ids, keys, removes_for_good=for_good))
            case "settle", name, behind, rejected:
                # What an agent has in force it does not lose again.
                until = self.revision - behind

                def find_obstacle(touched: Touched) -> ObjectKey | None:
                    return next((key for key in sorted(rejected) if key in touched.keys), None)

                lasting = rejected & self.rejected.get(name, frozenset())
                self.rejected[name] = rejected
                obstacle = find_obstacle if rejected else None
                self.each(lambda log: log.settle(name, until, 1_000, obstacle, lasting))
            case "release", name:
                self.rejected.pop(name, None)
                self.each(lambda log: log.release(name))

    def each(self, ask: Callable[[RevisionLog], object]) -> list[object]:
        answers = []
        for crowd_min, log in self.logs.items():
            self._monkeypatch.setattr("secgroups.controller.in_force.CROWD_MIN", crowd_min)
            answers.append(ask(log))
        return answers

    def told(self, log: RevisionLog) -> object:
        agents = [(log.waiting(name), log.find_oldest_commit_us(name)) for name in AGENTS]
        found = [(log.knows(revision), log.find(revision)) for revision in range(1, self.revision + 1)]
        touched = [(known, each and (each.agent_ids, each.waiting > 0, each.in_force_us)) for known, each in found]
        counted = log.delays.counted()
        return agents, touched, counted.counts, counted.sum_us


@pytest.mark.parametrize("revisions_max", [5, 1_000])
@given(steps=st.lists(step, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_crowd_answers_as_its_agents_would_each_for_themselves(
    monkeypatch: pytest.MonkeyPatch, revisions_max: int, steps: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr("secgroups.controller.in_force.REVISIONS_MAX", revisions_max)
    both = Both(monkeypatch)
    for each in steps:
        both.take(*each)
        crowds, alone = both.each(both.told)
        assert crowds == alone
