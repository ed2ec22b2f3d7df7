"""What must be so, from scratch: the states that the store's change log tells of, and what an agent has to enforce in each.

Nothing here asks the controller's state, its publisher or the agent's engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from secgroups.controller.model import Address, AnywhereRemote, Change, Group, GroupRemote, Rule, Server

Key = tuple[str, str]  # "server", "group" or "set", and its name.


@dataclass(frozen=True)
class State:
    """The stored objects at one revision."""

    revision: int = 0
    groups: dict[str, Group] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)

    def then(self, revision: int, changes: Iterable[Change]) -> State:
        """Return the state after one more revision."""
        shelves: dict[str, dict[str, Any]] = {
            "group": dict(self.groups),
            "rule": dict(self.rules),
            "server": dict(self.servers),
        }
        for change in changes:
            if change.after is None:
                del shelves[change.kind][change.key]
            else:
                shelves[change.kind][change.key] = change.after
        return State(revision, shelves["group"], shelves["rule"], shelves["server"])

    def rules_of(self, group_id: str) -> set[str]:
        """Return the ids of a group's rules."""
        return {key for key, rule in self.rules.items() if rule.group_id == group_id}

    def shape(self) -> dict[str, Any]:
        """Return what two equal states have in common, without the revisions that the log does not tell."""
        return {
            "groups": {key: (group.project, group.name, group.description) for key, group in self.groups.items()},
            "rules": {key: (rule.group_id, rule.spec) for key, rule in self.rules.items()},
            "servers": {
                key: (server.name, server.addresses, server.agent_id, server.group_ids) for key, server in self.servers.items()
            },
        }


def spanned(state: State, agent_id: str, extra_servers: Iterable[str] = ()) -> dict[Key, Any]:
    """Return the objects that an agent has to hold, with their contents: those of its servers and of ``extra_servers``."""
    objects: dict[Key, Any] = {}
    servers = [server for key, server in state.servers.items() if server.agent_id == agent_id or key in extra_servers]
    rules_of: dict[str, list[Rule]] = {}
    for rule in state.rules.values():
        rules_of.setdefault(rule.group_id, []).append(rule)
    remotes: set[str] = set()
    for server in servers:
        objects["server", server.key] = (frozenset(server.addresses), tuple(sorted(server.group_ids)))
        for group_id in server.group_ids:
            rules = rules_of.get(group_id, [])
            objects["group", group_id] = (state.groups[group_id].name, frozenset(map(rule_shape, rules)))
            remotes |= {rule.spec.remote.group_id for rule in rules if isinstance(rule.spec.remote, GroupRemote)}
    for group_id in remotes:
        objects["set", group_id] = members(state, group_id)
    return objects


def members(state: State, group_id: str) -> frozenset[Address]:
    """Return the addresses of the servers of a group."""
    return frozenset(address for server in state.servers.values() if group_id in server.group_ids for address in server.addresses)


def rule_shape(rule: Rule) -> tuple[Any, ...]:
    spec = rule.spec
    remote: object
    if isinstance(spec.remote, AnywhereRemote):
        remote = None
    else:
        remote = spec.remote.group_id if isinstance(spec.remote, GroupRemote) else spec.remote
    return rule.id, int(spec.direction), spec.protocol, spec.ports, spec.icmp_type, spec.icmp_code, remote


def enforced(ruleset: Any) -> dict[Key, Any]:
    """Return what an agent's firewall has in force, in the same shape."""
    objects: dict[Key, Any] = {}
    for name, binding in ruleset.servers.items():
        objects["server", name] = (frozenset(binding.addresses), tuple(sorted(binding.group_ids)))
    for name, group in ruleset.groups.items():
        rules = frozenset(
            (
                rule.id,
                int(rule.direction),
                rule.protocol,
                rule.ports,
                rule.icmp_type,
                rule.icmp_code,
                rule.remote,
            )
            for rule in group.rules
        )
        objects["group", name] = (group.name, rules)
    for name, held in ruleset.sets.items():
        objects["set", name] = frozenset(held.members)
    return objects


@dataclass(frozen=True)
class Opening:
    """The packet that opens a TCP connection. ``direction`` is 1 towards the server, 2 from it."""

    server: str
    direction: int
    local: Any
    remote: Any
    port: int


def allows(state: State, opening: Opening) -> bool:
    """Say by the definition whether a server's rules let a TCP connection be opened."""
    server = state.servers[opening.server]
    return any(rule.group_id in server.group_ids and _covers(state, rule, opening) for rule in state.rules.values())


def _covers(state: State, rule: Rule, opening: Opening) -> bool:
    spec = rule.spec
    if int(spec.direction) != opening.direction or spec.protocol not in (None, 6):
        return False
    if spec.ports is not None and not spec.ports[0] <= opening.port <= spec.ports[1]:
        return False
    remote = spec.remote
    if isinstance(remote, AnywhereRemote):
        return True
    if isinstance(remote, (IPv4Network, IPv6Network)):
        return opening.remote in remote
    return opening.remote in members(state, remote.group_id)


class Branch:
    """One line of history: the states that followed each other on one database file, until it is put back to an older copy."""

    def __init__(self, number: int, states: Sequence[State]) -> None:
        self.number = number
        self._states = list(states)
        self._spans: dict[tuple[int, str, frozenset[str]], dict[Key, Any]] = {}

    @property
    def latest(self) -> State:
        return self._states[-1]

    def has(self, revision: int) -> bool:
        """Whether the line goes as far as a revision."""
        return 0 <= revision < len(self._states)

    def at(self, revision: int) -> State:
        """Return the state of a revision."""
        return self._states[revision]

    def add(self, changes: Sequence[Change]) -> None:
        """Take over what the change log tells of the next revisions."""
        by_revision: dict[int, list[Change]] = {}
        for change in changes:
            by_revision.setdefault(change.revision, []).append(change)
        for revision in sorted(by_revision):
            if revision != self.latest.revision + 1:
                raise AssertionError(f"revision {revision} follows {self.latest.revision} in the change log")
            self._states.append(self.latest.then(revision, by_revision[revision]))

    def put_back(self, number: int, revision: int) -> Branch:
        """Return a line that goes on from an earlier revision of this one."""
        return Branch(number, self._states[: revision + 1])

    def spanned(self, revision: int, agent_id: str, extra: frozenset[str]) -> dict[Key, Any]:
        """Return what an agent has to hold at a revision; see the function."""
        key = (revision, agent_id, extra)
        found = self._spans.get(key)
        if found is None:
            found = self._spans[key] = spanned(self.at(revision), agent_id, extra)
        return found

    def touched(self, revision: int) -> set[str]:
        """Return the agents that have to hold something else since a revision, all that were named ever considered."""
        before, after = self.at(revision - 1), self.at(revision)
        agent_ids = {server.agent_id for state in (before, after) for server in state.servers.values()} - {""}
        nothing: frozenset[str] = frozenset()
        return {
            agent_id
            for agent_id in agent_ids
            if self.spanned(revision - 1, agent_id, nothing) != self.spanned(revision, agent_id, nothing)
        }
