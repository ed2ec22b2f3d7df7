"""Projects as plans, ways to bring a store there, and what follows from a plan alone: who allows what, by definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st
from rules_by_definition import RawRule
from store_world import commit

from secgroups.controller import operations as ops
from secgroups.controller.model import Group, Rule
from secgroups.controller.state import State
from secgroups.controller.store.interface import Transaction
from secgroups.controller.store.sqlite import SqliteStore

T = TypeVar("T")
# A rule as everybody would recognise it: the name of its group, and what it allows with groups by name.
Named = tuple[str, str]

GROUP_NAMES = ("default", "web", "db", "ops")
SERVER_IDS = ("s1", "s2", "s3", "s4")
AGENT_IDS = ("", "a1", "a2")
BORN = (RawRule(direction="EGRESS", remote="0.0.0.0/0"), RawRule(direction="EGRESS", remote="::/0"))


@dataclass(frozen=True)
class PlannedServer:
    """A server with the names of its groups."""

    addresses: tuple[str, ...]
    groups: frozenset[str]
    agent: str = ""


@dataclass(frozen=True)
class Plan:
    """A project as it is to be: rules by the name of their group, servers by id."""

    groups: dict[str, tuple[RawRule, ...]]
    servers: dict[str, PlannedServer] = field(default_factory=dict)

    def rules_of(self, server_id: str) -> dict[Named, RawRule]:
        """Return what a server is subject to, by definition: the union of the rules of its groups."""
        names = self.servers[server_id].groups
        return {(name, text_of(rule)): rule for name in names for rule in self.groups[name]}

    def members(self, name: str) -> list[str]:
        """Return the addresses that a group stands for, by definition: those of the servers attached to it; IPv4 first."""
        found = [address for server in self.servers.values() if name in server.groups for address in server.addresses]
        return sorted(found, key=lambda text: (ip_address(text).version, int(ip_address(text))))

    def groups_at(self, address: str) -> frozenset[str]:
        return frozenset(name for name in self.groups if address in self.members(name))


def text_of(rule: RawRule) -> str:
    """Return what a rule allows, groups by name."""
    return rule.spec().identity


_ports = st.sampled_from([None, (22, 22), (80, 443), (443, 443)])
_remotes = st.sampled_from(["anywhere", "10.0.0.0/8", "10.0.0.1/32", "2001:db8::/32", "group web", "group db", "group default"])
raw_rules = st.builds(
    RawRule,
    direction=st.sampled_from(["INGRESS", "EGRESS"]),
    protocol=st.sampled_from([6, 17]),
    ports=_ports,
    remote=_remotes,
) | st.builds(
    RawRule,
    direction=st.sampled_from(["INGRESS", "EGRESS"]),
    protocol=st.sampled_from([None, 1, 47]),
    remote=_remotes,
)
several_rules = st.lists(raw_rules, max_size=4, unique_by=text_of).map(tuple)
_addresses = st.permutations([*(f"10.0.0.{number}" for number in range(1, 6)), "2001:db8::1", "2001:db8::2", "::5"])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a project; each server has one address or two of its own, the same few in every project."""
    free = list(draw(_addresses))
    groups = {name: draw(several_rules) for name in GROUP_NAMES}
    servers = {
        server_id: PlannedServer(
            tuple(free.pop() for _ in range(draw(st.integers(1, 2)))),
            draw(st.frozensets(st.sampled_from(GROUP_NAMES), min_size=1, max_size=3)),
            draw(st.sampled_from(AGENT_IDS)),
        )
        for server_id in draw(st.sets(st.sampled_from(SERVER_IDS), min_size=1))
    }
    return Plan(groups, servers)


class Builder:
    """A store, its state, and ways to change both."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path, durable=False)
        self.state = State(self.store.load())

    def close(self) -> None:
        self.store.close()

    def do(self, operation: Callable[[Transaction], T]) -> T:
        committed = commit(self.store, operation)
        self.state.apply(committed.changes)
        assert committed.value is not None
        return committed.value

    def ids(self, project: str) -> dict[str, str]:
        return {group.name: group.id for group in self.state.groups(project)}

    def named(self, rule: Rule, more: Sequence[Group] = ()) -> Named:
        """Return a rule as everybody would recognise it; ``more`` are groups that are not in the state."""
        names = {group.id: group.name for group in (*self.state.groups(rule.project), *more)}
        spec = rule.spec
        remote = f"group {names[spec.remote_group_id]}" if spec.remote_group_id else spec.identity.rpartition(" ")[2]
        raw = RawRule(
            direction=spec.direction.name,
            protocol=spec.protocol,
            ports=spec.ports,
            icmp_type=spec.icmp_type,
            icmp_code=spec.icmp_code,
            remote=remote,
        )
        return names[rule.group_id], text_of(raw)

    # Ways to get where a plan wants to be.

    def straight(self, project: str, plan: Plan) -> Iterator[None]:
        """Build a project in the order of its plan, a step at a time."""
        for name in plan.groups:
            self._make_group(project, name)
            yield
        for name, rules in plan.groups.items():
            self._replace(project, name, rules)
            yield
        for server_id, server in plan.servers.items():
            self._make_server(project, server_id, server.addresses, server.groups, server.agent)
            yield

    def detoured(self, project: str, plan: Plan, chance: Random) -> Iterator[None]:
        """Build a project in any order and by detours: what is made too early or wrong is put right later."""
        names = chance.sample(sorted(plan.groups), len(plan.groups))
        for name in (*names, "detour"):
            self._make_group(project, name)
            yield
        self._replace(project, "detour", [RawRule(remote=f"group {chance.choice(names)}")])
        early = [server_id for server_id in plan.servers if chance.random() < 0.7]
        for number, server_id in enumerate(early):
            self._make_server(project, server_id, [f"192.0.2.{number}"], {"detour", chance.choice(names)}, chance.choice(AGENT_IDS))
            yield
        steps = [step for name in names for step in self._rules_by_detours(project, name, plan.groups[name], chance)]
        steps += [self._server_by_detours(project, server_id, server, chance) for server_id, server in plan.servers.items()]
        for step in chance.sample(steps, len(steps)):
            yield from step
        # Of the rules drawn above, those that came in the wrong order are put right, and the detour is taken away.
        for name in names:
            self._replace(project, name, plan.groups[name])
            yield
        self.do(lambda tx: ops.delete_group(tx, project=project, group_id=self.ids(project)["detour"]))

    def _rules_by_detours(self, project: str, name: str, rules: Sequence[RawRule], chance: Random) -> list[Iterator[None]]:
        def add(rule: RawRule) -> Iterator[None]:
            if all(text_of(rule) != text for _, text in map(self.named, self.state.rules_of_group(self.ids(project)[name]))):
                specs = [rule.spec(self.ids(project))]
                self.do(lambda tx: ops.create_rules(tx, project=project, group_id=self.ids(project)[name], specs=specs, bulk=False))
            yield

        def drop_any() -> Iterator[None]:
            held = self.state.rules_of_group(self.ids(project)[name])
            if held:
                gone = chance.choice(held).id
                self.do(lambda tx: ops.delete_rule(tx, project=project, rule_id=gone))
            yield

        return [*(add(rule) for rule in rules), drop_any(), drop_any()]

    def _server_by_detours(self, project: str, server_id: str, server: PlannedServer, chance: Random) -> Iterator[None]:
        if self.state.find_server(project, server_id) is None:
            self._make_server(project, server_id, server.addresses, {"default"}, "")
            yield
        elif chance.random() < 0.3:
            self.do(lambda tx: ops.delete_server(tx, project=project, server_id=server_id))
            self._make_server(project, server_id, server.addresses, {"default"}, "")
            yield
        groups = [self.ids(project)[name] for name in server.groups]
        for group_id in groups:
            self.do(lambda tx, group_id=group_id: ops.attach_group(tx, project=project, server_id=server_id, group_id=group_id))
            yield
        values: dict[str, Any] = {"addresses": [ip_address(text) for text in server.addresses], "agent_id": server.agent}
        self.do(lambda tx: ops.update_server(tx, project=project, server_id=server_id, **values))
        yield
        self.do(lambda tx: ops.set_server_groups(tx, project=project, server_id=server_id, group_ids=groups))
        yield

    def _make_group(self, project: str, name: str) -> None:
        if name == "default":
            self.do(lambda tx: ops.ensure_default_group(tx, project))
        else:
            self.do(lambda tx: ops.create_group(tx, project=project, name=name))

    def _replace(self, project: str, name: str, rules: Sequence[RawRule]) -> None:
        ids = self.ids(project)
        specs = [rule.spec(ids) for rule in rules]
        self.do(lambda tx: ops.replace_rules(tx, project=project, group_id=ids[name], specs=specs))

    def _make_server(self, project: str, server_id: str, addresses: Any, groups: Any, agent: str) -> None:
        values: dict[str, Any] = {
            "addresses": [ip_address(text) for text in addresses],
            "group_ids": [self.ids(project)[name] for name in groups],
            "agent_id": agent,
        }
        self.do(lambda tx: ops.create_server(tx, project=project, server_id=server_id, **values))
