"""A store as those see it who use it: short ways to change it, and all that can be read of it in comparable form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from secgroups.controller import operations as ops
from secgroups.controller.model import ANYWHERE as EVERYWHERE
from secgroups.controller.model import TCP, Direction, Group, Remote, RuleSpec, Server
from secgroups.controller.state import State
from secgroups.controller.store.interface import Committed, Contents, Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore

T = TypeVar("T")
PROJECT = "p"
BEGIN_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US


class Clock:
    """The time that a store is told; it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_us = BEGIN_US

    def __call__(self) -> int:
        return self.now_us


def commit(store: SqliteStore, operation: Callable[[Transaction], T], **how: Any) -> Committed[T]:
    """Commit one mutation; raise what it raises. ``how`` is what Pending takes."""
    (result,) = store.commit([Pending(operation, **how)])
    if isinstance(result, Exception):
        raise result
    return result


def allow(port: int, remote: Remote = EVERYWHERE, description: str = "") -> RuleSpec:
    """Return ingress TCP to one port."""
    return RuleSpec(direction=Direction.INGRESS, protocol=TCP, ports=(port, port), remote=remote, description=description)


def new_group(name: str, project: str = PROJECT) -> Callable[[Transaction], Group]:
    return lambda tx: ops.create_group(tx, project=project, name=name)


def new_server(server_id: str, address: str, project: str = PROJECT) -> Callable[[Transaction], Server]:
    return lambda tx: ops.create_server(tx, project=project, server_id=server_id, addresses=[ip_address(address)])


def named_group(tx: Transaction, name: str, project: str = PROJECT) -> Group:
    """Return a group that must be there."""
    found = tx.find_group_by_name(project, name)
    assert found is not None
    return found


def everything(state: State, projects: Iterable[str] = (PROJECT,)) -> dict[str, Any]:
    """Return all that can be read of a state: objects, and every way to look them up."""
    read: dict[str, Any] = {"revision": state.revision, "projects": state.projects}
    read["agents"] = {agent_id: state.servers_of_agent(agent_id) for agent_id in sorted(state.agents())}
    for project in projects:
        groups, servers = list(state.groups(project)), list(state.servers(project))
        read[project] = {
            "groups": groups,
            "rules": list(state.rules(project)),
            "servers": servers,
            "by name": {group.name: state.group_by_name(project, group.name) for group in groups},
            "rules of": {group.id: state.rules_of_group(group.id) for group in groups},
            "named by": {group.id: sorted(rule.id for rule in state.rules_naming(group.id)) for group in groups},
            "members": {group.id: sorted(map(str, state.members(group.id))) for group in groups},
            "attached": {group.id: state.servers_of_group(group.id) for group in groups},
            "counts": {group.id: (state.rule_count(group.id), state.server_count(group.id)) for group in groups},
            "most": most(state, project),
            "owners": {str(each): state.server_of_address(project, each) for server in servers for each in server.addresses},
        }
    return read


def most(state: State, project: str) -> list[int]:
    """Return the largest counts of a project, each of which the one that is named has."""
    tallies, servers = state.tallies(project), list(state.servers(project))
    found = {
        tallies.rules_by_group: {group.id: state.rule_count(group.id) for group in state.groups(project)},
        tallies.groups_by_server: {server.id: len(server.group_ids) for server in servers},
        tallies.addresses_by_server: {server.id: len(server.addresses) for server in servers},
    }
    for tally, counts in found.items():
        count, named = tally.most()
        assert (count, counts.get(named, 0)) == (max(counts.values(), default=0), count)
    assert (state.group_total(project), state.server_total(project)) == (len(list(state.groups(project))), len(servers))
    return [tally.most()[0] for tally in found]


def folded(store: SqliteStore, page: int = 1_000) -> State:
    """Return the state that the change log tells, from its very beginning, read in pages of ``page`` changes."""
    state = State(Contents(revision=0))
    while True:
        read = store.changes_since(state.revision, page)
        assert not read.gap
        if not read.changes:
            assert read.revision == state.revision
            return state
        state.apply(read.changes)
        assert state.revision == read.revision
        # What was asked for is kept up from then on.
        for project in state.projects:
            most(state, project)


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, but for the lock file: it says who holds it and outlives everybody."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".lock"}
