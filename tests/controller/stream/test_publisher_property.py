"""Whatever happens, in whatever order: an agent in step holds what follows from the stored state, and was told of nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_world import ANYWHERE, PROJECT, Agent, Direction, Update, Welcome, World, members, ops

from secgroups.agent.flow import Direction as AgentDirection
from secgroups.agent.ruleset import AddressSet, GroupRules, Rule, Ruleset, ServerBinding
from secgroups.controller.errors import RequestError
from secgroups.controller.model import Rule as ModelRule
from secgroups.controller.model import RuleSpec
from secgroups.controller.stream_messages import Outbound
from secgroups.v1 import agent_service_pb2 as pb

AGENTS = ("a", "b", "c")
SERVERS = tuple(f"s{number}" for number in range(6))
GROUPS = ("g0", "g1", "g2", "g3")

group = st.integers(0, len(GROUPS) - 1)
server = st.sampled_from(SERVERS)
agent = st.sampled_from(AGENTS)
addresses = st.sets(st.integers(1, 9), min_size=1, max_size=3).map(lambda numbers: [ip_address(f"10.0.0.{n}") for n in numbers])
spec = st.builds(lambda port, remote: (port, remote), st.integers(1, 3), st.none() | group)
specs = st.lists(spec, min_size=1, max_size=3)

step = st.one_of(
    st.tuples(st.just("create_server"), server, st.sampled_from(("", *AGENTS)), st.sets(group, max_size=3), addresses),
    st.tuples(st.just("delete_server"), server),
    st.tuples(st.just("move"), server, st.sampled_from(("", *AGENTS))),
    st.tuples(st.just("addresses"), server, addresses),
    st.tuples(st.just("attach"), server, group),
    st.tuples(st.just("detach"), server, group),
    st.tuples(st.just("rule"), group, spec),
    st.tuples(st.just("rules"), group, st.lists(spec, max_size=3)),
    st.tuples(st.just("rename"), group, st.sampled_from(("x", "y"))),
    st.tuples(st.just("flow"), agent),
    st.tuples(st.just("begin_and_change"), agent, group, spec, server, addresses, group),
    st.tuples(st.just("put_back"), agent, group, specs, specs),
    st.tuples(st.just("send"), agent),
    st.tuples(st.just("apply"), agent, st.sampled_from((1, 2, 100))),
    st.tuples(st.just("ack"), agent),
    st.tuples(st.just("beat"), agent),
    st.tuples(st.just("pump"), agent),
    st.tuples(st.just("disconnect"), agent),
    st.tuples(st.just("connect"), agent),
    st.tuples(st.just("forget"), agent),
    st.tuples(st.just("window"), agent, st.integers(0, 2), st.sampled_from((0, 1, 600))),
    st.tuples(st.just("save"), agent),
    st.tuples(st.just("reboot"), agent),
    st.tuples(st.just("restart")),
    st.tuples(st.just("copy")),
    st.tuples(st.just("restore")),
)


class Scene:
    """A world with four groups and three agents, and what the steps do to it. What there was is kept, by timeline and revision."""

    def __init__(self, path: Path, *, window: bool) -> None:
        self.folder = path.parent
        self.world = World(path)
        self.groups = [self.world.group(name) for name in GROUPS]
        self.past: dict[tuple[str, int], Ruleset] = {}
        self.copies: list[Path] = []
        self.agents = {name: Agent(self.world, name) for name in AGENTS}
        self.remember()
        for number, name in enumerate(SERVERS):
            self.take(("create_server", name, AGENTS[number % 2], {number % 4, 3}, [ip_address(f"10.0.1.{number}")]))
        for number in range(len(GROUPS)):
            self.take(("rules", number, [(1, None), (2, (number + 1) % 4), (3, number)]))
        for name, each in self.agents.items():
            each.took = partial(self._check_is_past, name)
            if window:
                each.window = pb.Window(messages=1, bytes=1)
            each.connect()

    def remember(self) -> None:
        self.past[self.world.store.timeline_id, self.world.revision] = ruleset_of(self.world, *everything(self.world))

    def _check_is_past(self, name: str, message: Outbound) -> None:
        """What is in force after a message is what there was at the revision that it names, and lacks nothing that it refers to."""
        replica = self.agents[name].replica
        if isinstance(message, Welcome) or (isinstance(message, Update) and message.more):
            return
        ruleset, past = replica.ruleset, self.past[replica.timeline_id, replica.revision]
        for held, there in ((ruleset.servers, past.servers), (ruleset.groups, past.groups), (ruleset.sets, past.sets)):
            assert held.items() <= there.items()
        assert {group_id for held in ruleset.servers.values() for group_id in held.group_ids} == ruleset.groups.keys()
        remotes = {rule.remote for held in ruleset.groups.values() for rule in held.rules if isinstance(rule.remote, str)}
        assert remotes == ruleset.sets.keys()

    def take(self, step: tuple) -> None:
        verb, *arguments = step
        with suppress(RequestError):
            getattr(self, f"_{verb}")(*arguments)
            self.remember()

    def _create_server(self, server_id, agent_id, groups, addresses) -> None:
        group_ids = [self.groups[number].id for number in groups]
        self.world.do(ops.create_server, server_id=server_id, name="", addresses=addresses, agent_id=agent_id, group_ids=group_ids)

    def _delete_server(self, server_id) -> None:
        self.world.do(ops.delete_server, server_id=server_id)

    def _move(self, server_id, agent_id) -> None:
        self.world.move(server_id, agent_id)

    def _addresses(self, server_id, addresses) -> None:
        self.world.do(ops.update_server, server_id=server_id, addresses=addresses)

    def _attach(self, server_id, number) -> None:
        self.world.do(ops.attach_group, server_id=server_id, group_id=self.groups[number].id)

    def _detach(self, server_id, number) -> None:
        self.world.do(ops.detach_group, server_id=server_id, group_id=self.groups[number].id)

    def _spec(self, port_and_remote) -> RuleSpec:
        port, remote = port_and_remote
        where = ANYWHERE if remote is None else members(self.groups[remote])
        return RuleSpec(direction=Direction.INGRESS, protocol=6, ports=(port, port), remote=where)

    def _rule(self, number, spec) -> None:
        self.world.rule(self.groups[number], self._spec(spec))

    def _rules(self, number, specs) -> None:
        self.world.do(ops.replace_rules, group_id=self.groups[number].id, specs=[self._spec(spec) for spec in specs])

    def _rename(self, number, name) -> None:
        self.world.do(ops.update_group, group_id=self.groups[number].id, name=name)

    def _send(self, name) -> None:
        if self.agents[name].channel:
            self._check_span(name, self.agents[name].send())

    def _apply(self, name, count=100) -> None:
        self.agents[name].apply(count)

    def _ack(self, name) -> None:
        self.agents[name].ack()

    def _beat(self, name) -> None:
        if self.agents[name].channel:
            self.agents[name].beat()

    def _pump(self, name) -> None:
        for _ in range(3):
            self._send(name)
            self._apply(name)
            self._ack(name)

    def _disconnect(self, name) -> None:
        self.agents[name].disconnect()

    def _connect(self, name) -> None:
        self.agents[name].connect()

    def _forget(self, name) -> None:
        self.agents[name].disconnect()
        self.agents[name].start()

    def _flow(self, name) -> None:
        """One window of what is to be said."""
        self._send(name)
        self._apply(name)
        self._ack(name)

    def _begin_and_change(self, name, number, spec, server_id, addresses, other) -> None:
        """Have a stream begin anew, and things change when part of what it has to say was said."""
        self._forget(name)
        self._connect(name)
        self._flow(name)
        for change in (
            partial(self._rules, number, [spec]),
            partial(self._addresses, server_id, addresses),
            partial(self._flow, name),
            partial(self._set_groups, server_id, {other}),
            partial(self._rules, other, [spec]),
        ):
            with suppress(RequestError):
                change()
                self.remember()

    def _set_groups(self, server_id, numbers) -> None:
        group_ids = [self.groups[number].id for number in numbers]
        self.world.do(ops.set_server_groups, server_id=server_id, group_ids=group_ids)

    def _put_back(self, name, number, before, after) -> None:
        """Make a copy of the file, let an agent hear of some changes, put the copy back and go another way."""
        self._connect(name)
        self._copy()
        for spec in before:
            self._rules(number, [spec])
            self.remember()
        for _ in range(40):
            self._flow(name)
        self._restore()
        for spec in after:
            self._rules(number, [spec])
            self.remember()

    def _window(self, name, messages, size_bytes) -> None:
        self.agents[name].window = pb.Window(messages=messages, bytes=size_bytes)

    def _save(self, name) -> None:
        self.agents[name].save()

    def _reboot(self, name) -> None:
        self.agents[name].reboot()

    def _restart(self) -> None:
        self._lose(self.world.restart)

    def _copy(self) -> None:
        self.copies.append(self.folder / f"copy-{len(self.copies)}.db")
        self.world.copy(self.copies[-1])

    def _restore(self) -> None:
        if self.copies:
            self._lose(partial(self.world.restore, self.copies[-1]))

    def _lose(self, start: Callable[[], None]) -> None:
        """End the controller and start it again. What it had sent may still arrive."""
        start()
        self.remember()
        for each in self.agents.values():
            each.channel = None

    def _check_span(self, name: str, messages: list) -> None:
        """Nothing was sent that the agent's servers do not need; a server that it no longer guards was sent before."""
        own = {held.key for held in self.world.state.servers_of_agent(name)}
        leaving = {key for key in self.agents[name].replica.ruleset.servers if key not in own}
        _, group_ids, set_ids = span_of(self.world, name, also=leaving)
        for message in messages:
            if isinstance(message, Update):
                assert {made.server for made in message.servers} <= own | leaving
                assert {made.group_id for made in message.groups} <= group_ids
                assert {made.group_id for made in (*message.sets, *message.set_patches)} <= set_ids

    def settle(self) -> None:
        """Bring every agent into step; a move may take a round of its own."""
        for _ in range(3):
            for name, each in self.agents.items():
                if each.channel is None:
                    each.connect()
                each.apply()
                each.ack()
                while each.channel.has_news:
                    self._pump(name)
        for each in self.agents.values():
            each.beat()
            each.apply()
            each.ack()


def everything(world: World) -> tuple[set[str], set[str], set[str]]:
    """Return the keys of all servers, groups and sets that there are."""
    group_ids = {group.id for group in world.state.groups(PROJECT)}
    return {held.key for held in world.state.servers(PROJECT)}, group_ids, group_ids


def span_of(world: World, agent_id: str, also: set[str] = frozenset()) -> tuple[set[str], set[str], set[str]]:
    """Return the keys of the servers, groups and sets that an agent needs, the plain way; ``also`` are servers it still holds."""
    servers = [held for held in world.state.servers(PROJECT) if held.agent_id == agent_id or held.key in also]
    group_ids = {group_id for held in servers for group_id in held.group_ids}
    rules = [rule for group_id in group_ids for rule in world.state.rules_of_group(group_id)]
    return {held.key for held in servers}, group_ids, {rule.spec.remote_group_id for rule in rules} - {None}


def from_scratch(world: World, agent_id: str) -> Ruleset:
    """Return what an agent must hold, worked out from the state by another way than the publisher's."""
    return ruleset_of(world, *span_of(world, agent_id))


def ruleset_of(world: World, server_keys: set[str], group_ids: set[str], set_ids: set[str]) -> Ruleset:
    state = world.state
    servers, groups, sets = {}, {}, {}
    for key in server_keys:
        held = state.find_server(PROJECT, key.partition("/")[2])
        servers[key] = ServerBinding(
            server=key, version=held.binding_revision, addresses=frozenset(held.addresses), group_ids=held.group_ids
        )
    for group_id in group_ids:
        held = state.find_group(PROJECT, group_id)
        groups[group_id] = GroupRules(
            group_id=group_id,
            version=held.rules_revision,
            name=held.name,
            rules=tuple(rule_of(rule) for rule in state.rules_of_group(group_id)),
        )
    for group_id in set_ids:
        addresses = frozenset(address for held in state.servers_of_group(group_id) for address in held.addresses)
        version = state.find_group(PROJECT, group_id).members_revision
        sets[group_id] = AddressSet(group_id=group_id, version=version, members=addresses)
    return Ruleset(servers=servers, groups=groups, sets=sets)


def rule_of(rule: ModelRule) -> Rule:
    spec = rule.spec
    remote = spec.remote_group_id or (None if spec.remote == ANYWHERE else spec.remote)
    return Rule(id=rule.id, direction=AgentDirection(spec.direction), protocol=spec.protocol, ports=spec.ports, remote=remote)


def states(scene: Scene) -> Iterator[tuple[Ruleset, Ruleset]]:
    for name, each in scene.agents.items():
        yield from_scratch(scene.world, name), replace(each.replica.ruleset, revision=0)


@pytest.fixture(params=[None, 700], ids=["one message a step", "many messages a step"], scope="module")
def small(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether messages are so small that the least step takes several, each in a window of its own."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setattr("secgroups.controller.channel.CHUNK_BYTES_MAX", request.param)
            patch.setattr("secgroups.controller.channel.CHUNK_BYTES_MIN", 300)
        yield bool(request.param)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(step, max_size=50))
def test_an_agent_in_step_holds_what_the_state_says(small: bool, steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "secgroups.db", window=small)
        with closing(scene.world):
            for step in steps:
                scene.take(step)
            scene.settle()
            for expected, held in states(scene):
                assert held == expected
            assert scene.world.lagging() == {}
            assert all(status.pending_revisions == 0 for status in map(scene.world.publisher.find_status, AGENTS))
