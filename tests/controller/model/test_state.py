"""The model in memory is what is stored, in whatever order one transaction tells of what changed hands in it."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from ipaddress import ip_address
from typing import TypeVar

import pytest

from secgroups.controller.model import ANYWHERE, TCP, Change, Direction, Group, ObjectKind, Rule, RuleSpec, Server
from secgroups.controller.state import State
from secgroups.controller.store.interface import Contents

PROJECTS, BYTES_PER_PROJECT_MAX = 1_000, 20
ADDRESS = ip_address("10.0.0.1")
KINDS: dict[type, ObjectKind] = {Group: "group", Rule: "rule", Server: "server"}
V = TypeVar("V", Group, Rule, Server)


def group(id_: str, name: str, project: str = "p") -> Group:
    return Group(
        id=id_,
        project=project,
        name=name,
        description="",
        created_us=0,
        updated_us=0,
        revision=1,
        rules_revision=1,
        members_revision=1,
    )


def server(id_: str, *addresses: str, project: str = "p") -> Server:
    return Server(
        project=project,
        id=id_,
        name=id_,
        addresses=tuple(map(ip_address, addresses)),
        agent_id="a",
        group_ids=(f"{project}-g",),
        created_us=0,
        updated_us=0,
        revision=1,
        binding_revision=1,
    )


def rule(id_: str, project: str) -> Rule:
    spec = RuleSpec(direction=Direction.INGRESS, protocol=TCP, ports=(80, 80), remote=ANYWHERE)
    return Rule(id=id_, project=project, group_id=f"{project}-g", spec=spec, created_us=0, revision=1)


def change(before: V | None, after: V | None) -> Change:
    thing = after or before
    assert thing is not None
    return Change(revision=2, kind=KINDS[type(thing)], key=thing.id, before=before, after=after, at_us=0)


@pytest.mark.parametrize("backwards", [False, True])
def test_groups_that_exchange_their_names_are_found_by_them(backwards: bool) -> None:
    before = [group("g1", "web"), group("g2", "db")]
    after = [replace(before[0], name="db"), replace(before[1], name="web")]
    state = State.load(Contents(revision=1, groups=before))
    changes = [change(old, new) for old, new in zip(before, after, strict=True)]
    state.apply(changes[::-1] if backwards else changes)
    assert [state.group_by_name("p", name) for name in ("web", "db")] == [after[1], after[0]]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("goes", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_an_address_that_changes_hands_is_that_of_its_new_server(backwards: bool, goes: bool, asked: bool) -> None:
    before = [server("s1", "10.0.0.1", "10.0.0.3"), server("s2", "10.0.0.2")]
    state = State.load(Contents(revision=1, servers=before))
    if asked:
        assert state.server_of_address("p", ADDRESS) == before[0]
    loses = None if goes else replace(before[0], addresses=before[0].addresses[1:])
    gains = replace(before[1], addresses=(*before[1].addresses, ADDRESS))
    changes = [change(before[0], loses), change(before[1], gains)]
    state.apply(changes[::-1] if backwards else changes)
    assert state.server_of_address("p", ADDRESS) == gains
    assert state.server_of_address("p", ip_address("10.0.0.3")) == loses


def test_who_has_the_most_is_kept_up_once_it_was_asked_for() -> None:
    servers = [server("s1", "10.0.0.1", "10.0.0.3"), server("s2", "10.0.0.2")]
    rules = [rule("r1", "p"), rule("r2", "p")]
    state = State.load(Contents(revision=1, groups=[group("p-g", "web")], rules=rules, servers=servers))
    tallies = state.tallies("p")
    assert (tallies.rules_by_group.most(), tallies.addresses_by_server.most()) == ((2, "p-g"), (2, "s1"))
    grown = replace(servers[1], addresses=(*servers[1].addresses, ip_address("10.0.0.4"), ip_address("10.0.0.5")))
    state.apply([change(servers[1], grown), change(rules[0], None)])
    assert (tallies.rules_by_group.most(), tallies.addresses_by_server.most()) == ((1, "p-g"), (3, "s2"))
    state.apply([change(grown, None), change(rules[1], None)])
    assert (tallies.rules_by_group.most(), tallies.addresses_by_server.most()) == ((0, ""), (2, "s1"))
    assert (tallies.groups_by_server.most(), state.server_total("p")) == ((1, "s1"), 1)


def test_of_projects_that_are_gone_nothing_is_left() -> None:
    state = State.load(Contents(revision=1))
    _come_and_go(state, 10)
    tracemalloc.start()
    try:
        _come_and_go(state, PROJECTS)
        gc.collect()
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert state.projects == []
    assert grown_bytes < PROJECTS * BYTES_PER_PROJECT_MAX


def _come_and_go(state: State, projects: int) -> None:
    for number in range(projects):
        project = f"p{number}"
        things = [group(f"{project}-g", "web", project), rule(f"{project}-r", project), server("s", "10.0.0.1", project=project)]
        state.apply([change(None, thing) for thing in things])
        state.tallies(project)
        state.server_of_address(project, ADDRESS)
        state.apply([change(thing, None) for thing in reversed(things)])
