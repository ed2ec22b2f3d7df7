"""Which agent needs which objects, kept as counts, so that a change costs what it touches and not what there is.

An agent needs the servers placed on it, the rules of their groups, and the address sets of the groups that these rules name as
remote. A server is placed on the agent that guards it and, while it moves, on the one that let go of it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, KeysView, Set
from itertools import chain

from secgroups.controller.stream_messages import Kind, ObjectKey

# Objects, each with the agents that are to look at it again.
Marks = list[tuple[frozenset[str], ObjectKey]]


class Interest:
    """The span of every agent. Every change answers what entered or left whose span."""

    def __init__(self) -> None:
        self._servers: dict[str, dict[str, tuple[str, ...]]] = {}  # agent -> server -> its groups
        self._groups = _Counts()  # agent, group: its servers in the group
        self._naming = _Counts()  # group, remote group: its rules that name it
        # Remote group -> agent -> its groups that name it. It follows from the two above, and to make it of all remote groups would
        # take a fifth of the controller's start: it is made when somebody asks for the agents of one, and kept up from then on.
        self._needing: dict[str, dict[str, int]] = {}
        # The holders of a server; those with the same one share the set, which is replaced and never changed.
        self._agents_of_server: dict[str, frozenset[str]] = {}

    def begin(self, named: Iterable[tuple[str, str]], placed: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
        """Begin with everything that there is: what ``name_remote`` and ``place`` make of each, in a fraction of the time."""
        for group_id, remote in named:
            self._naming.add(group_id, remote)
        alone: dict[str, frozenset[str]] = {}
        holders = self._agents_of_server
        for agent_id, server, group_ids in placed:
            held = self._servers.get(agent_id)
            if held is None:
                held, alone[agent_id] = {}, frozenset((agent_id,))
                self._servers[agent_id] = held
            held[server] = group_ids
            holders[server] = holders[server] | alone[agent_id] if server in holders else alone[agent_id]
        for agent_id, servers in self._servers.items():
            self._groups.begin(agent_id, Counter(chain.from_iterable(servers.values())))

    def wants(self, agent_id: str, key: ObjectKey) -> bool:
        """Whether an object is in an agent's span."""
        kind, name = key
        if kind is Kind.SERVER:
            return name in self._servers.get(agent_id, ())
        return self._groups.has(agent_id, name) if kind is Kind.GROUP else self._needs_set(agent_id, name)

    def wants_all(self, agent_id: str, keys: Iterable[ObjectKey]) -> bool:
        """Whether objects are all in an agent's span."""
        groups, servers = self._groups.of(agent_id), self._servers.get(agent_id, {})
        return all(
            self._needs_set(agent_id, name) if kind is Kind.SET else name in (groups if kind is Kind.GROUP else servers)
            for kind, name in keys
        )

    def span(self, agent_id: str) -> Iterator[ObjectKey]:
        """Yield an agent's span: sets, then groups, then servers."""
        groups = self._groups.of(agent_id)
        for name in dict.fromkeys(chain.from_iterable(map(self._naming.of, groups))):
            yield Kind.SET, name
        for name in groups:
            yield Kind.GROUP, name
        for name in self._servers.get(agent_id, ()):
            yield Kind.SERVER, name

    def agents(self) -> Collection[str]:
        """Return the agents that servers are placed on."""
        return self._servers.keys()

    def agents_of(self, key: ObjectKey) -> Collection[str]:
        """Return the agents with an object in their span.

        Of an address set it takes, the first time, as long as all agents with one of the groups that name it are many.
        """
        kind, name = key
        if kind is Kind.SERVER:
            return self._agents_of_server.get(name, ())
        return self._groups.owners(name) if kind is Kind.GROUP else self._agents_needing(name)

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
            self._agents_of_server[server] = self._agents_of_server.get(server, frozenset()) | {agent_id}
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
        left = self._agents_of_server.pop(server) - {agent_id}
        if left:
            self._agents_of_server[server] = left
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

    # Who needs an address set. What is counted here has already been put into, or taken out of, ``_groups`` or ``_naming``.

    def _set_needed(self, agent_id: str, remote: str) -> Marks:
        """Count one more group of an agent that names ``remote``."""
        needing = self._needing.get(remote)
        if needing is None:
            is_first = len(self._groups_naming(agent_id, remote)) == 1
        else:
            is_first = agent_id not in needing
            needing[agent_id] = needing.get(agent_id, 0) + 1
        return [(frozenset((agent_id,)), (Kind.SET, remote))] if is_first else []

    def _set_left(self, agent_id: str, remote: str) -> Marks:
        """Count one group less of an agent that names ``remote``."""
        needing = self._needing.get(remote)
        if needing is None:
            is_last = not self._groups_naming(agent_id, remote)
        else:
            needing[agent_id] -= 1
            is_last = not needing[agent_id]
            if is_last:
                del needing[agent_id]
            if not needing:
                del self._needing[remote]
        return [(frozenset((agent_id,)), (Kind.SET, remote))] if is_last else []

    def _needs_set(self, agent_id: str, remote: str) -> bool:
        needing = self._needing.get(remote)
        if needing is not None:
            return agent_id in needing
        return not self._groups.of(agent_id).isdisjoint(self._naming.owners(remote))

    def _groups_naming(self, agent_id: str, remote: str) -> Set[str]:
        """Return the groups of an agent that name a remote group."""
        return self._groups.of(agent_id) & self._naming.owners(remote)

    def _agents_needing(self, remote: str) -> Collection[str]:
        needing = self._needing.get(remote)
        if needing is None:
            needing = dict(Counter(chain.from_iterable(map(self._groups.owners, self._naming.owners(remote)))))
            if needing:
                self._needing[remote] = needing
        return needing.keys()


_NOTHING: dict[str, int] = {}
_NOBODY: frozenset[str] = frozenset()


class _Counts:
    """How often each owner needs each name, from both sides."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._owners: dict[str, set[str]] = {}

    def begin(self, owner: str, counts: dict[str, int]) -> None:
        """Take over what an owner needs that was not known before, all of it."""
        self._counts[owner] = counts
        for name in counts:
            owners = self._owners.get(name)
            if owners is None:
                self._owners[name] = {owner}
            else:
                owners.add(owner)

    def of(self, owner: str) -> KeysView[str]:
        return self._counts.get(owner, _NOTHING).keys()

    def owners(self, name: str) -> Set[str]:
        return self._owners.get(name, _NOBODY)

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
