"""Which agent needs which objects, kept as counts, so that a change costs what it touches and not what there is.

An agent needs the servers placed on it, the rules of their groups, and the address sets of the groups that these rules name as
remote. A server is placed on the agent that guards it and, while it moves, on the one that let go of it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain

from secgroups.controller.stream_messages import Kind, ObjectKey

# Objects, each with the agents that are to look at it again.
Marks = list[tuple[frozenset[str], ObjectKey]]


class Interest:
    """The span of every agent. Every change answers what entered or left whose span."""

    def __init__(self) -> None:
        self._servers: dict[str, dict[str, tuple[str, ...]]] = {}  # agent -> server -> its groups
        self._groups = _Counts()  # agent, group: its servers in the group
        self._sets = _Counts()  # agent, remote group: its groups that name it
        self._naming = _Counts()  # group, remote group: its rules that name it
        self._agents_of_server: dict[str, set[str]] = {}

    def begin(self, named: Iterable[tuple[str, str]], placed: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
        """Begin with everything that there is: what ``name_remote`` and ``place`` make of each, in a fraction of the time."""
        for group_id, remote in named:
            self._naming.add(group_id, remote)
        for agent_id, server, group_ids in placed:
            self._servers.setdefault(agent_id, {})[server] = group_ids
            self._agents_of_server.setdefault(server, set()).add(agent_id)
        for agent_id, servers in self._servers.items():
            groups = Counter(chain.from_iterable(servers.values()))
            self._groups.begin(agent_id, groups)
            self._sets.begin(agent_id, Counter(chain.from_iterable(map(self._naming.of, groups))))

    def wants(self, agent_id: str, key: ObjectKey) -> bool:
        """Whether an object is in an agent's span."""
        kind, name = key
        if kind is Kind.SERVER:
            return name in self._servers.get(agent_id, ())
        return (self._groups if kind is Kind.GROUP else self._sets).has(agent_id, name)

    def wants_all(self, agent_id: str, keys: Iterable[ObjectKey]) -> bool:
        """Whether objects are all in an agent's span."""
        groups, sets, servers = self._groups.of(agent_id), self._sets.of(agent_id), self._servers.get(agent_id, {})
        return all(name in (groups if kind is Kind.GROUP else sets if kind is Kind.SET else servers) for kind, name in keys)

    def span(self, agent_id: str) -> Iterator[ObjectKey]:
        """Yield an agent's span: sets, then groups, then servers."""
        for name in self._sets.of(agent_id):
            yield Kind.SET, name
        for name in self._groups.of(agent_id):
            yield Kind.GROUP, name
        for name in self._servers.get(agent_id, ()):
            yield Kind.SERVER, name

    def agents(self) -> Collection[str]:
        """Return the agents that servers are placed on."""
        return self._servers.keys()

    def agents_of(self, key: ObjectKey) -> Collection[str]:
        """Return the agents with an object in their span."""
        kind, name = key
        if kind is Kind.SERVER:
            return self._agents_of_server.get(name, ())
        return (self._groups if kind is Kind.GROUP else self._sets).owners(name)

    def remotes_of(self, group_id: str) -> Collection[str]:
        """Return the groups that the rules of a group name as remote."""
        return self._naming.of(group_id)

    def place(self, agent_id: str, server: str, group_ids: Iterable[str]) -> Marks:
        """Place a server on an agent, or change the groups of one that is placed there."""
        marks: Marks = []
        held = self._servers.setdefault(agent_id, {})
        before = held.get(server)
        after = tuple(group_ids)
        held[server] = after
        if before is None:
            self._agents_of_server.setdefault(server, set()).add(agent_id)
            marks.append((frozenset((agent_id,)), (Kind.SERVER, server)))
        for group_id in set(after).difference(before or ()):
            if self._groups.add(agent_id, group_id):
                marks.append((frozenset((agent_id,)), (Kind.GROUP, group_id)))
                for remote in self._naming.of(group_id):
                    marks += self._set_needed(agent_id, remote)
        self._leave(agent_id, set(before or ()).difference(after), marks)
        return marks

    def displace(self, agent_id: str, server: str) -> Marks:
        """Take a server away from an agent."""
        held = self._servers.get(agent_id, {})
        group_ids = held.pop(server, None)
        if group_ids is None:
            return []
        if not held:
            del self._servers[agent_id]
        placed = self._agents_of_server[server]
        placed.discard(agent_id)
        if not placed:
            del self._agents_of_server[server]
        marks: Marks = [(frozenset((agent_id,)), (Kind.SERVER, server))]
        self._leave(agent_id, group_ids, marks)
        return marks

    def name_remote(self, group_id: str, remote: str) -> Marks:
        """Count one more rule of a group that names ``remote``."""
        marks: Marks = []
        if self._naming.add(group_id, remote):
            for agent_id in self._groups.owners(group_id):
                marks += self._set_needed(agent_id, remote)
        return marks

    def unname_remote(self, group_id: str, remote: str) -> Marks:
        """Count one rule less of a group that names ``remote``."""
        marks: Marks = []
        if self._naming.remove(group_id, remote):
            for agent_id in self._groups.owners(group_id):
                marks += self._set_left(agent_id, remote)
        return marks

    def forget_group(self, group_id: str) -> None:
        """Forget the rules of a group that is gone; no server was in it."""
        for remote in list(self._naming.of(group_id)):
            while not self._naming.remove(group_id, remote):
                pass

    def _leave(self, agent_id: str, group_ids: Iterable[str], marks: Marks) -> None:
        for group_id in group_ids:
            if self._groups.remove(agent_id, group_id):
                marks.append((frozenset((agent_id,)), (Kind.GROUP, group_id)))
                for remote in self._naming.of(group_id):
                    marks += self._set_left(agent_id, remote)

    def _set_needed(self, agent_id: str, remote: str) -> Marks:
        return [(frozenset((agent_id,)), (Kind.SET, remote))] if self._sets.add(agent_id, remote) else []

    def _set_left(self, agent_id: str, remote: str) -> Marks:
        return [(frozenset((agent_id,)), (Kind.SET, remote))] if self._sets.remove(agent_id, remote) else []


class _Counts:
    """How often each owner needs each name, from both sides."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._owners: dict[str, set[str]] = {}

    def begin(self, owner: str, counts: Mapping[str, int]) -> None:
        """Take in all that an owner needs that was not known before."""
        if counts:
            self._counts[owner] = dict(counts)
        for name in counts:
            owners = self._owners.get(name)
            if owners is None:
                self._owners[name] = {owner}
            else:
                owners.add(owner)

    def of(self, owner: str) -> Collection[str]:
        return self._counts.get(owner, ())

    def owners(self, name: str) -> Collection[str]:
        return self._owners.get(name, ())

    def has(self, owner: str, name: str) -> bool:
        return name in self._counts.get(owner, ())

    def add(self, owner: str, name: str) -> bool:
        """Count one more; whether it is the first."""
        counts = self._counts.setdefault(owner, {})
        counts[name] = counts.get(name, 0) + 1
        if counts[name] > 1:
            return False
        self._owners.setdefault(name, set()).add(owner)
        return True

    def remove(self, owner: str, name: str) -> bool:
        """Count one less; whether it was the last. Nothing happens if there is none."""
        counts = self._counts.get(owner, {})
        if name not in counts:
            return False
        counts[name] -= 1
        if counts[name]:
            return False
        del counts[name]
        if not counts:
            del self._counts[owner]
        owners = self._owners[name]
        owners.discard(owner)
        if not owners:
            del self._owners[name]
        return True
