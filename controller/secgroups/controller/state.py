"""The whole model in memory: a pure fold of what is stored, kept up by changes, read by everybody.

One change costs what it touches, never a walk over the model. Lists are in ascending order of id.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Generic, TypeVar

from secgroups.controller.limits import LimitOverrides, Limits
from secgroups.controller.model import (
    DEFAULT_GROUP,
    Address,
    Change,
    Group,
    Object,
    Rule,
    Server,
    alters_what_is_allowed,
    groups_with_other_members,
    is_default_name,
)
from secgroups.controller.store.interface import Contents
from secgroups.controller.tally import ProjectTallies

V = TypeVar("V", Group, Rule, Server)
K = TypeVar("K")


class _Shelf(Generic[V]):
    """Objects of one project by id, with their ids in order."""

    def __init__(self, by_id: dict[str, V] | None = None) -> None:
        """Begin with objects by id, which are the shelf's own from now on."""
        self.by_id: dict[str, V] = by_id or {}
        self._ids: list[str] = sorted(self.by_id)

    def put(self, key: str, value: V) -> None:
        if key not in self.by_id:
            insort(self._ids, key)
        self.by_id[key] = value

    def drop(self, key: str) -> None:
        if self.by_id.pop(key, None) is not None:
            del self._ids[bisect_left(self._ids, key)]

    def after(self, key: str) -> Iterator[V]:
        """Yield the objects whose id is above ``key``, in order; not to be held over a change."""
        for index in range(bisect_right(self._ids, key), len(self._ids)):
            yield self.by_id[self._ids[index]]


class State:
    """Groups, rules and servers as of ``revision``."""

    def __init__(self, contents: Contents) -> None:
        self.revision = contents.revision
        self._groups = _shelves(contents.groups)
        self._names: dict[tuple[str, str], str] = {(group.project, group.name): group.id for group in contents.groups}
        self._rules = _shelves(contents.rules)
        self._servers = _shelves(contents.servers)
        self._rules_by_group: defaultdict[str, dict[str, Rule]] = defaultdict(dict)
        self._naming: defaultdict[str, dict[str, Rule]] = defaultdict(dict)
        self._servers_by_group: defaultdict[str, dict[str, Server]] = defaultdict(dict)
        self._servers_by_agent: defaultdict[str, dict[str, Server]] = defaultdict(dict)
        # By project, of those that were asked about. Few are, and an address takes a while to hash.
        self._server_by_address: dict[str, dict[Address, str]] = {}
        # Of projects that were asked about, too.
        self._tallies: dict[str, ProjectTallies] = {}
        self._limit_overrides = {each.project: each for each in contents.limit_overrides}
        for rule in contents.rules:
            self._index_rule(rule)
        for server in contents.servers:
            self._index_server(server)

    @classmethod
    def load(cls, contents: Contents) -> State:
        """Return the state of what a store holds."""
        return cls(contents)

    def apply(self, changes: Sequence[Change]) -> None:
        """Take over changes, in order of revision."""
        for change in changes:
            before, after = change.before, change.after
            thing = after or before
            if isinstance(thing, Group):
                self._put_group(self._typed(before, Group), self._typed(after, Group))
            elif isinstance(thing, Rule):
                self._put_rule(self._typed(before, Rule), self._typed(after, Rule))
                self._touch_rules(change, thing)
            elif isinstance(thing, Server):
                old, new = self._typed(before, Server), self._typed(after, Server)
                self._put_server(old, new)
                for group_id in groups_with_other_members(old, new):
                    self._amend(thing.project, group_id, members_revision=change.revision)
            elif isinstance(thing, LimitOverrides):
                self._put_limit_overrides(thing.project, change.after)
            self.revision = change.revision

    @staticmethod
    def _typed(thing: Object | None, kind: type[V]) -> V | None:
        return thing if isinstance(thing, kind) else None

    def _touch_rules(self, change: Change, rule: Rule) -> None:
        before, after = self._typed(change.before, Rule), self._typed(change.after, Rule)
        self._amend(rule.project, rule.group_id, revision=change.revision, updated_us=change.at_us)
        if alters_what_is_allowed(before, after):
            self._amend(rule.project, rule.group_id, rules_revision=change.revision)

    def _amend(self, project: str, group_id: str, **values: int) -> None:
        group = self.find_group(project, group_id)
        if group is not None:
            self._groups[project].by_id[group_id] = replace(group, **values)  # type: ignore[arg-type]

    def _put_group(self, before: Group | None, after: Group | None) -> None:
        if before is not None:
            _release(self._names, (before.project, before.name), before.id)
        if after is not None:
            held = self._groups[after.project].by_id.get(after.id)
            # The members' revision follows changes of servers, which a change of the group itself does not carry on.
            kept = after if held is None else replace(after, members_revision=max(held.members_revision, after.members_revision))
            self._groups[after.project].put(after.id, kept)
            self._names[after.project, after.name] = after.id
        elif before is not None:
            _drop(self._groups, before.project, before.id)

    def _put_rule(self, before: Rule | None, after: Rule | None) -> None:
        for rule in (before, after):
            if rule is None:
                continue
            remote = rule.spec.remote_group_id
            if rule is after:
                self._rules[rule.project].put(rule.id, rule)
                self._index_rule(rule)
            elif after is None:
                _drop(self._rules, rule.project, rule.id)
                _remove(self._rules_by_group, rule.group_id, rule.id)
                if remote is not None:
                    _remove(self._naming, remote, rule.id)
            if rule.project in self._tallies:
                self._tallies[rule.project].rules_by_group.put(rule.group_id, self.rule_count(rule.group_id))

    def _index_rule(self, rule: Rule) -> None:
        self._rules_by_group[rule.group_id][rule.id] = rule
        remote = rule.spec.remote_group_id
        if remote is not None:
            self._naming[remote][rule.id] = rule

    def _put_server(self, before: Server | None, after: Server | None) -> None:
        if before is not None:
            for group_id in before.group_ids:
                _remove(self._servers_by_group, group_id, before.key)
            _remove(self._servers_by_agent, before.agent_id, before.key)
            by_address = self._server_by_address.get(before.project, {})
            for address in before.addresses:
                _release(by_address, address, before.id)
            if after is None:
                _drop(self._servers, before.project, before.id)
                self._tally_server(before.project, before.id, 0, 0)
                if before.project not in self._servers:
                    self._server_by_address.pop(before.project, None)
                    self._tallies.pop(before.project, None)
        if after is not None:
            self._servers[after.project].put(after.id, after)
            self._index_server(after)
            self._tally_server(after.project, after.id, len(after.group_ids), len(after.addresses))
            if after.project in self._server_by_address:
                self._server_by_address[after.project] |= dict.fromkeys(after.addresses, after.id)

    def _index_server(self, server: Server) -> None:
        key = server.key
        for group_id in server.group_ids:
            self._servers_by_group[group_id][key] = server
        if server.agent_id:
            self._servers_by_agent[server.agent_id][key] = server

    def _tally_server(self, project: str, server_id: str, groups: int, addresses: int) -> None:
        if project in self._tallies:
            self._tallies[project].groups_by_server.put(server_id, groups)
            self._tallies[project].addresses_by_server.put(server_id, addresses)

    def _put_limit_overrides(self, project: str, after: Object | None) -> None:
        if isinstance(after, LimitOverrides):
            self._limit_overrides[project] = after
        else:
            self._limit_overrides.pop(project, None)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many objects there are of each kind. Takes time in proportion to the projects."""
        return {
            "group": sum(len(shelf.by_id) for shelf in self._groups.values()),
            "rule": sum(len(shelf.by_id) for shelf in self._rules.values()),
            "server": sum(len(shelf.by_id) for shelf in self._servers.values()),
        }

    @property
    def projects(self) -> list[str]:
        return sorted(project for project, shelf in self._groups.items() if shelf.by_id)

    def find_group(self, project: str, group_id: str) -> Group | None:
        return self._groups[project].by_id.get(group_id) if project in self._groups else None

    def group_by_name(self, project: str, name: str) -> Group | None:
        """Return the group of a name; any spelling of ``default`` finds that one."""
        group_id = self._names.get((project, DEFAULT_GROUP if is_default_name(name) else name))
        return self.find_group(project, group_id) if group_id else None

    def find_rule(self, project: str, rule_id: str) -> Rule | None:
        return self._rules[project].by_id.get(rule_id) if project in self._rules else None

    def find_server(self, project: str, server_id: str) -> Server | None:
        return self._servers[project].by_id.get(server_id) if project in self._servers else None

    def server_of_address(self, project: str, address: Address) -> Server | None:
        """Return the server that has an address. The first time it takes time in proportion to the servers of the project."""
        by_address = self._server_by_address.get(project)
        if by_address is None and project in self._servers:
            by_address = {each: server.id for server in self._servers[project].by_id.values() for each in server.addresses}
            self._server_by_address[project] = by_address
        server_id = by_address.get(address) if by_address else None
        return self.find_server(project, server_id) if server_id else None

    def all_groups(self) -> Iterator[Group]:
        """Yield the groups of all projects, in no order; not to be held over a change. So do the next two."""
        return chain.from_iterable(shelf.by_id.values() for shelf in self._groups.values())

    def all_rules(self) -> Iterator[Rule]:
        return chain.from_iterable(shelf.by_id.values() for shelf in self._rules.values())

    def all_servers(self) -> Iterator[Server]:
        return chain.from_iterable(shelf.by_id.values() for shelf in self._servers.values())

    def groups(self, project: str, after: str = "") -> Iterator[Group]:
        """Yield a project's groups whose id is above ``after``."""
        return self._groups[project].after(after) if project in self._groups else iter(())

    def rules(self, project: str, after: str = "") -> Iterator[Rule]:
        """Yield a project's rules whose id is above ``after``."""
        return self._rules[project].after(after) if project in self._rules else iter(())

    def servers(self, project: str, after: str = "") -> Iterator[Server]:
        """Yield a project's servers whose id is above ``after``."""
        return self._servers[project].after(after) if project in self._servers else iter(())

    def rules_of_group(self, group_id: str) -> list[Rule]:
        return [rule for _, rule in sorted(self._rules_by_group.get(group_id, {}).items())]

    def rules_naming(self, group_id: str) -> Collection[Rule]:
        """Return the rules that name a group as remote, its own ones too, in no order."""
        return self._naming.get(group_id, {}).values()

    def servers_of_group(self, group_id: str) -> list[Server]:
        return [server for _, server in sorted(self._servers_by_group.get(group_id, {}).items())]

    def servers_of_agent(self, agent_id: str) -> list[Server]:
        return [server for _, server in sorted(self._servers_by_agent.get(agent_id, {}).items())]

    def server_count(self, group_id: str) -> int:
        return len(self._servers_by_group.get(group_id, ()))

    def rule_count(self, group_id: str) -> int:
        return len(self._rules_by_group.get(group_id, ()))

    def group_total(self, project: str) -> int:
        return len(self._groups[project].by_id) if project in self._groups else 0

    def server_total(self, project: str) -> int:
        return len(self._servers[project].by_id) if project in self._servers else 0

    def tallies(self, project: str) -> ProjectTallies:
        """Return which groups and servers have the most. The first time it takes time in proportion to those of the project."""
        tallies = self._tallies.get(project)
        if tallies is None:
            tallies = ProjectTallies()
            for group in self.groups(project):
                tallies.rules_by_group.put(group.id, self.rule_count(group.id))
            if project in self._servers:
                # Without servers there is little to count, and nobody to keep it for.
                self._tallies[project] = tallies
                for server in self.servers(project):
                    self._tally_server(project, server.id, len(server.group_ids), len(server.addresses))
        return tallies

    def members(self, group_id: str) -> Iterable[Address]:
        """Yield the addresses of a group's members, in no order."""
        for server in self._servers_by_group.get(group_id, {}).values():
            yield from server.addresses

    def find_limit_overrides(self, project: str) -> LimitOverrides | None:
        return self._limit_overrides.get(project)

    def limits_of(self, project: str, defaults: Limits) -> Limits:
        """Return what counts for a project, whether there is one or not."""
        overrides = self._limit_overrides.get(project)
        return defaults if overrides is None else overrides.over(defaults)

    def limit_overrides(self, after: str = "") -> Iterator[LimitOverrides]:
        """Yield those of the projects above ``after``, in no order; not to be held over a change."""
        return (each for project, each in self._limit_overrides.items() if project > after)

    def agents(self) -> Collection[str]:
        """Return the ids of the agents that guard a server, in no order."""
        return self._servers_by_agent.keys()

    def guards(self, agent_id: str) -> bool:
        """Whether an agent guards a server."""
        return agent_id in self._servers_by_agent


def _shelves(things: Iterable[V]) -> defaultdict[str, _Shelf[V]]:
    """Return objects by project."""
    by_project: defaultdict[str, dict[str, V]] = defaultdict(dict)
    for thing in things:
        by_project[thing.project][thing.id] = thing
    return defaultdict(_Shelf, {project: _Shelf(by_id) for project, by_id in by_project.items()})


def _remove(index: defaultdict[str, dict[str, V]], key: str, item: str) -> None:
    """Take ``item`` out, and the entry of ``key`` with the last of its items."""
    items = index.get(key)
    if items is not None:
        items.pop(item, None)
        if not items:
            del index[key]


def _release(owners: dict[K, str], key: K, owner: str) -> None:
    """Take ``key`` from ``owner``, not from another that one transaction gave it to before this was told of."""
    if owners.get(key) == owner:
        del owners[key]


def _drop(shelves: defaultdict[str, _Shelf[V]], project: str, id_: str) -> None:
    """Take an object out of its project's shelf, and the shelf with the last of them."""
    shelf = shelves.get(project)
    if shelf is not None:
        shelf.drop(id_)
        if not shelf.by_id:
            del shelves[project]
