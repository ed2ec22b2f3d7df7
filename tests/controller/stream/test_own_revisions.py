"""How it stands with a revision for those of one project: its own revisions count, and what others change shows in nothing."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from stream_world import PROJECT, Agent, World, ops

from secgroups.controller import own_revisions
from secgroups.controller.limit_operations import update_limits
from secgroups.controller.store.interface import Pending

OTHER = "q"


def do(world: World, project: str, operation: Callable[..., Any], **values: Any) -> int:
    """Commit an operation of a project; return its revision."""
    (result,) = world.store.commit([Pending(lambda tx: operation(tx, project=project, **values))])
    assert not isinstance(result, Exception)
    world.state.apply(result.changes)
    world.publisher.changed(result.changes)
    return world.revision


def server(world: World, project: str, server_id: str, agent_id: str, address: str = "10.0.0.1") -> int:
    values = {"server_id": server_id, "agent_id": agent_id, "addresses": [ip_address(address)]}
    return do(world, project, ops.create_server, **values)


def told(world: World, project: str, revision: int | None = None) -> tuple[bool, list[str], int]:
    """Return what a project is told of a revision, the newest by default; both ways to ask must agree."""
    asked = world.revision if revision is None else revision
    standing = world.publisher.own.standing(project, asked)
    assert world.publisher.own.is_in_force(project, asked) == (not standing.lagging)
    return not standing.lagging, [lag.agent_id for lag in standing.lagging], standing.agents_touched


@pytest.fixture
def shared(world: World) -> Agent:
    """An agent with servers of both projects, in step."""
    server(world, PROJECT, "s1", "a")
    server(world, OTHER, "s1", "a")
    agent = Agent(world, "a").connect()
    agent.pump()
    return agent


def test_a_revision_of_another_project_is_no_concern_whether_it_is_in_force_or_not(world: World, shared: Agent) -> None:
    theirs = server(world, OTHER, "s2", "never-comes", "10.0.0.2")
    assert world.publisher.in_force(theirs).lagging
    assert told(world, PROJECT, theirs) == (True, [], 1)
    assert told(world, "nobody", theirs) == (True, [], 0)
    # Its other server has the new one as a member of a remote group.
    assert told(world, OTHER, theirs) == (False, ["a", "never-comes"], 2)


def test_a_later_revision_of_another_project_is_answered_with_the_newest_of_the_own(world: World, shared: Agent) -> None:
    mine = server(world, PROJECT, "s2", "a", "10.0.0.2")
    theirs = server(world, OTHER, "s2", "never-comes", "10.0.0.2")
    assert told(world, PROJECT, theirs) == told(world, PROJECT, mine) == (False, ["a"], 1)
    shared.pump()
    assert told(world, PROJECT, theirs) == told(world, PROJECT, mine) == (True, [], 1)
    assert world.publisher.own.standing(PROJECT, theirs).commit_to_in_force_us is not None


def test_what_another_project_has_pending_on_the_same_agent_shows_in_nothing(world: World, shared: Agent) -> None:
    before = world.revision
    server(world, OTHER, "s2", "a", "10.0.0.2")
    assert world.publisher.in_force(world.revision).lagging
    assert told(world, PROJECT) == told(world, PROJECT, before) == (True, [], 1)


def test_what_admins_decide_of_a_project_hides_none_of_its_revisions(world: World, shared: Agent) -> None:
    server(world, PROJECT, "s2", "a", "10.0.0.2")
    do(world, PROJECT, update_limits, changes={"rules_per_group": 9})
    assert told(world, PROJECT) == (False, ["a"], 1)


@pytest.mark.parametrize("project", [PROJECT, OTHER])
def test_who_waits_is_woken_when_its_own_is_in_force(world: World, shared: Agent, project: str) -> None:
    server(world, project, "s2", "a", "10.0.0.2")
    woken: list[str] = []
    unwatch = world.publisher.own.watch(project, world.revision, lambda: woken.append(project))
    assert not woken
    shared.pump()
    assert woken
    assert told(world, project)[0]
    unwatch()


def test_after_a_restart_the_agents_of_the_own_servers_count_and_no_others(world: World, shared: Agent) -> None:
    server(world, OTHER, "s2", "never-comes", "10.0.0.2")
    world.restart()
    assert world.publisher.in_force(world.revision).lagging
    assert told(world, PROJECT) == (False, ["a"], 1)
    assert told(world, "nobody") == (True, [], 0)
    woken: list[bool] = []
    unwatch = world.publisher.own.watch(PROJECT, world.revision, lambda: woken.append(True))
    agent = Agent(world, "a").connect()
    agent.pump()
    assert woken
    unwatch()
    assert told(world, PROJECT) == (True, [], 0)
    # What the other one changes from then on is no concern, though nothing is known of an own revision.
    server(world, OTHER, "s3", "a", "10.0.0.3")
    assert told(world, PROJECT) == (True, [], 0)
    assert told(world, OTHER) == (False, ["a", "never-comes"], 2)


def test_who_changes_much_makes_that_others_are_forgotten_and_they_learn_nothing_by_it(
    world: World, shared: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_revisions, "REVISIONS_MAX", 5)
    mine = server(world, PROJECT, "s2", "a", "10.0.0.2")
    for number in range(20):
        do(world, OTHER, ops.create_group, name=f"g{number}")
    assert len(world.publisher.own._projects) == 5
    assert set(world.publisher.own._by_project) == {OTHER}
    assert told(world, PROJECT, mine) == told(world, PROJECT) == (False, ["a"], 1)
    shared.pump()
    assert told(world, PROJECT, mine) == told(world, PROJECT) == (True, [], 0)
    server(world, OTHER, "s2", "a", "10.0.0.2")
    assert told(world, PROJECT) == (True, [], 0)
