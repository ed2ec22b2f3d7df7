"""Random lives of a real store against plain dicts: the same refusals, the same contents, one revision for each change."""

from __future__ import annotations

import copy
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.strategies import booleans, integers, just, none
from model_of_store import Key, Model, ModelGroup, ModelServer, RuleKey
from steps_of_store import (
    FOREIGN,
    GONE,
    DrawnRule,
    addresses,
    agents,
    descriptions,
    etags,
    new_names,
    picks,
    project_names,
    repeats,
    server_ids,
    server_names,
    several_rules,
    some_groups,
)
from store_world import everything, folded

from secgroups.controller import operations as ops
from secgroups.controller.limits import Limits
from secgroups.controller.model import ANYWHERE, Direction, GroupRemote, Remote, Rule, RuleSpec, etag_of
from secgroups.controller.state import State
from secgroups.controller.store.interface import Committed, Contents, Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore

PROJECTS = ("p", "q")
LIMITS = Limits(groups_per_project=4, rules_per_group=8, groups_per_server=2, servers_per_project=3, addresses_per_server=2)
NOBODY = uuid.UUID("01890000-0000-7000-8000-000000000000")
STALE = "r0"


class StoreMachine(RuleBasedStateMachine):
    """Every step does the same to a store and to a model, then all that can be seen of both is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="secgroups-test-"))
        self.model = Model(
            groups_max=LIMITS.groups_per_project,
            rules_max=LIMITS.rules_per_group,
            server_groups_max=LIMITS.groups_per_server,
            servers_max=LIMITS.servers_per_project,
            addresses_max=LIMITS.addresses_per_server,
        )
        self.open()
        self.state = State(self.store.load())
        self.fold = State(Contents(revision=0))
        self.ids: dict[Key, str] = {}

    def open(self) -> None:
        self.store = SqliteStore(self.folder / "secgroups.db", limits=LIMITS, durable=False)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    # The same to both.

    def mutate(
        self, operation: Callable[..., Any], tell: Callable[[Model], set[str]], *, held: Any = None, etag: str = "none"
    ) -> Any:
        """Commit ``operation(tx)``, or with its etag if there is an object ``held`` that may have one; return its value."""
        after = copy.deepcopy(self.model)
        refused = tell(after)
        given = {"none": "", "stale": STALE, "present": etag_of(held.revision) if held else STALE}[etag]
        if held is not None and given == STALE:
            refused |= {"StaleEtagError"}
        value = self.do((lambda tx: operation(tx, etag=given)) if etag != "none" else operation, refused, after != self.model)
        self.model = self.model if refused else after
        self.ids = {(group.project, group.name): group.id for project in PROJECTS for group in self.state.groups(project)}
        return value

    def do(self, operation: Callable[[Transaction], Any], refused: set[str], changed: bool) -> Any:
        before = self.store.revision
        (tried,) = self.store.commit([Pending(operation, validate_only=True)])
        assert self.store.revision == before
        (result,) = self.store.commit([Pending(operation, actor="me")])
        if isinstance(result, Exception):
            assert type(result).__name__ in refused, (result, refused)
            assert str(tried) == str(result)
            assert self.store.revision == before
            return None
        assert not refused, refused
        assert isinstance(result, Committed)
        assert isinstance(tried, Committed)
        assert self.store.revision == result.revision == before + changed
        assert [(each.kind, each.before) for each in tried.changes] == [(each.kind, each.before) for each in result.changes]
        assert {each.actor for each in result.changes} <= {"me"}
        self.state.apply(result.changes)
        return result.value

    # What was drawn, as what it stands for now.

    def id_of(self, key: Key) -> str:
        return self.ids.get(key) or str(uuid.uuid5(NOBODY, "/".join(key)))

    def some_group(self, pick: int) -> tuple[Key, str, str]:
        """Return a group by its key in the model, the project that is asked for it, and its id."""
        key = self.picked(self.model.groups, 0 if pick == FOREIGN else pick)
        if pick == FOREIGN:
            # Asked of the other project, it is not there.
            return (other_than(key[0]), "of another"), other_than(key[0]), self.id_of(key)
        return key, key[0], self.id_of(key)

    def some_rule(self, pick: int, number: int) -> tuple[Key, str, RuleKey, Rule | None]:
        """Return a rule by group and key in the model, the project that is asked for it, and the rule, if there is one."""
        key, project, group_id = self.some_group(pick)
        held = self.state.rules_of_group(group_id)
        if number == GONE or not held:
            return key, project, ("EGRESS", None, None, "192.0.2.0/24"), None
        found = held[number % len(held)]
        return key, project, self.rule_key(found), found

    def some_server(self, pick: int) -> Key:
        if pick == FOREIGN:
            project, server_id = self.picked(self.model.servers, 0)
            # It may have a server of that id as well.
            return other_than(project), server_id
        return self.picked(self.model.servers, pick)

    @staticmethod
    def picked(keys: Collection[Key], pick: int) -> Key:
        return ("p", "gone") if pick == GONE or not keys else sorted(keys)[pick % len(keys)]

    def groups_of(self, project: str, picks: Iterable[int]) -> list[Key]:
        """Return groups of a project, if they are meant to be, for its servers to be attached to."""
        own = [key for key in self.model.groups if key[0] == project]
        others = [key for key in self.model.groups if key[0] != project]
        return [self.picked(others, 0) if pick == FOREIGN else self.picked(own, pick) for pick in picks]

    def resolved(self, project: str, drawn: dict[DrawnRule, str]) -> dict[RuleKey, str]:
        return {
            (*rule[:3], remote if isinstance(remote, str) else self.groups_of(project, [remote])[0]): description
            for rule, description in drawn.items()
            for remote in (rule[3],)
        }

    def specs(self, wanted: dict[RuleKey, str], twice: list[RuleKey]) -> list[RuleSpec]:
        return [self.spec(*each) for each in wanted.items()] + [self.spec(each) for each in twice]

    def spec(self, rule_key: RuleKey, description: str = "") -> RuleSpec:
        direction, protocol, ports, remote = rule_key
        made: Remote = ANYWHERE
        if isinstance(remote, tuple):
            made = GroupRemote(self.id_of(remote))
        elif remote != "anywhere":
            made = ip_network(remote)
        return RuleSpec(direction=Direction[direction], protocol=protocol, ports=ports, remote=made, description=description)

    def rule_key(self, held: Rule) -> RuleKey:
        spec = held.spec
        remote: str | Key = "anywhere" if spec.remote == ANYWHERE else str(spec.remote)
        if isinstance(spec.remote, GroupRemote):
            (remote,) = (key for key, group_id in self.ids.items() if group_id == spec.remote.group_id)
        return spec.direction.name, spec.protocol, spec.ports, remote

    @initialize()
    def begin_with_something(self) -> None:
        for project, name in (("p", "web"), ("p", "db"), ("q", "web")):
            self.create_group(project, name, "")
        for number, server_id in enumerate(("s1", "s2")):
            self.create_server("p", server_id, "", [f"10.0.0.{number + 1}"], "a1", [number])

    # Groups.

    @rule(project=project_names, name=new_names, description=descriptions)
    def create_group(self, project: str, name: str, description: str) -> None:
        self.mutate(
            lambda tx: ops.create_group(tx, project=project, name=name, description=description),
            lambda model: model.create_group(project, name, description),
        )

    @rule(project=project_names)
    def use_a_project(self, project: str) -> None:
        self.mutate(lambda tx: ops.ensure_default_group(tx, project), lambda model: model.first_use(project))

    @rule(pick=picks, name=none() | new_names, description=none() | descriptions, etag=etags)
    def update_group(self, pick: int, name: str | None, description: str | None, etag: str) -> None:
        key, project, group_id = self.some_group(pick)
        self.mutate(
            lambda tx, **more: ops.update_group(tx, project=project, group_id=group_id, name=name, description=description, **more),
            lambda model: model.update_group(key, name, description),
            held=self.state.find_group(project, group_id),
            etag=etag,
        )

    @rule(pick=picks, etag=etags)
    def delete_group(self, pick: int, etag: str) -> None:
        key, project, group_id = self.some_group(pick)
        self.mutate(
            lambda tx, **more: ops.delete_group(tx, project=project, group_id=group_id, **more),
            lambda model: model.delete_group(key),
            held=self.state.find_group(project, group_id),
            etag=etag,
        )

    # Rules.

    @rule(pick=picks, drawn=several_rules, bulk=booleans(), repeat=repeats)
    def create_rules(self, pick: int, drawn: dict[DrawnRule, str], bulk: bool, repeat: bool) -> None:
        key, project, group_id = self.some_group(pick)
        added = self.resolved(project, drawn)
        twice = list(added)[:1] if repeat else []
        specs = self.specs(added, twice)
        self.mutate(
            lambda tx: ops.create_rules(tx, project=project, group_id=group_id, specs=specs, bulk=bulk),
            lambda model: model.create_rules(key, added, twice),
        )

    @rule(pick=picks)
    def create_no_rules(self, pick: int) -> None:
        key, project, group_id = self.some_group(pick)
        self.mutate(
            lambda tx: ops.create_rules(tx, project=project, group_id=group_id, specs=[], bulk=True),
            lambda model: model.create_rules(key, {}, []),
        )

    @rule(pick=picks, drawn=several_rules | just({}), keep=integers(0, 6), repeat=repeats, etag=etags)
    def replace_rules(self, pick: int, drawn: dict[DrawnRule, str], keep: int, repeat: bool, etag: str) -> None:
        key, project, group_id = self.some_group(pick)
        wanted = self.resolved(project, drawn)
        if key in self.model.groups:
            wanted = dict(list(self.model.groups[key].rules.items())[:keep]) | wanted
        twice = list(wanted)[:1] if repeat else []
        specs = self.specs(wanted, twice)
        held = {each.spec.identity: each.id for each in self.state.rules_of_group(group_id)}
        replaced = self.mutate(
            lambda tx, **more: ops.replace_rules(tx, project=project, group_id=group_id, specs=specs, **more),
            lambda model: model.replace_rules(key, wanted, twice),
            held=self.state.find_group(project, group_id),
            etag=etag,
        )
        if replaced is None:
            return
        now = {each.spec.identity: each.id for each in self.state.rules_of_group(group_id)}
        assert [each.spec for each in replaced.rules] == specs
        assert (
            set(replaced.kept_ids)
            == {now[each] for each in now.keys() & held.keys()}
            == {held[each] for each in now.keys() & held.keys()}
        )
        assert set(replaced.added_ids) == {now[each] for each in now.keys() - held.keys()}
        assert {each.id for each in replaced.removed} == {held[each] for each in held.keys() - now.keys()}

    @rule(pick=picks, number=picks, description=descriptions, etag=etags)
    def update_rule(self, pick: int, number: int, description: str, etag: str) -> None:
        key, project, rule_key, found = self.some_rule(pick, number)
        rule_id = found.id if found else str(NOBODY)
        self.mutate(
            lambda tx, **more: ops.update_rule(tx, project=project, rule_id=rule_id, description=description, **more),
            lambda model: model.update_rule(key, rule_key, description),
            held=self.state.find_rule(project, rule_id),
            etag=etag,
        )

    @rule(pick=picks, number=picks, etag=etags)
    def delete_rule(self, pick: int, number: int, etag: str) -> None:
        key, project, rule_key, found = self.some_rule(pick, number)
        rule_id = found.id if found else str(NOBODY)
        self.mutate(
            lambda tx, **more: ops.delete_rule(tx, project=project, rule_id=rule_id, **more),
            lambda model: model.delete_rule(key, rule_key),
            held=self.state.find_rule(project, rule_id),
            etag=etag,
        )

    # Servers.

    @rule(project=project_names, server_id=server_ids, name=server_names, wanted=addresses, agent=agents, drawn=some_groups)
    def create_server(self, project: str, server_id: str, name: str, wanted: list[str], agent: str, drawn: list[int]) -> None:
        keys = self.groups_of(project, drawn)
        group_ids = [self.id_of(each) for each in keys]
        values: dict[str, Any] = {"name": name, "addresses": [*map(ip_address, wanted)], "agent_id": agent, "group_ids": group_ids}
        self.mutate(
            lambda tx: ops.create_server(tx, project=project, server_id=server_id, **values),
            lambda model: model.create_server((project, server_id), name, wanted, agent, keys),
        )

    @rule(
        pick=picks,
        name=none() | server_names,
        wanted=none() | addresses,
        agent=none() | agents,
        drawn=none() | some_groups,
        etag=etags,
    )
    def update_server(
        self, pick: int, name: str | None, wanted: list[str] | None, agent: str | None, drawn: list[int] | None, etag: str
    ) -> None:
        key = self.some_server(pick)
        keys = None if drawn is None else self.groups_of(key[0], drawn)
        group_ids = None if keys is None else [self.id_of(each) for each in keys]
        parsed = None if wanted is None else [*map(ip_address, wanted)]
        values: dict[str, Any] = {"name": name, "addresses": parsed, "agent_id": agent, "group_ids": group_ids}
        self.mutate(
            lambda tx, **more: ops.update_server(tx, project=key[0], server_id=key[1], **values, **more),
            lambda model: model.update_server(key, name, wanted, agent, keys),
            held=self.state.find_server(*key),
            etag=etag,
        )

    @rule(pick=picks, drawn=some_groups, etag=etags)
    def set_server_groups(self, pick: int, drawn: list[int], etag: str) -> None:
        key = self.some_server(pick)
        keys = self.groups_of(key[0], drawn)
        group_ids = [self.id_of(each) for each in keys]
        self.mutate(
            lambda tx, **more: ops.set_server_groups(tx, project=key[0], server_id=key[1], group_ids=group_ids, **more),
            lambda model: model.update_server(key, None, None, None, keys),
            held=self.state.find_server(*key),
            etag=etag,
        )

    @rule(pick=picks, drawn=picks)
    def attach(self, pick: int, drawn: int) -> None:
        key = self.some_server(pick)
        (group,) = self.groups_of(key[0], [drawn])
        group_id = self.id_of(group)
        self.mutate(
            lambda tx: ops.attach_group(tx, project=key[0], server_id=key[1], group_id=group_id),
            lambda model: model.attach(key, group),
        )

    @rule(pick=picks, drawn=picks)
    def detach(self, pick: int, drawn: int) -> None:
        key = self.some_server(pick)
        (group,) = self.groups_of(key[0], [drawn])
        group_id = self.id_of(group)
        self.mutate(
            lambda tx: ops.detach_group(tx, project=key[0], server_id=key[1], group_id=group_id),
            lambda model: model.detach(key, group),
        )

    @rule(pick=picks, etag=etags)
    def delete_server(self, pick: int, etag: str) -> None:
        key = self.some_server(pick)
        self.mutate(
            lambda tx, **more: ops.delete_server(tx, project=key[0], server_id=key[1], **more),
            lambda model: model.delete_server(key),
            held=self.state.find_server(*key),
            etag=etag,
        )

    @rule()
    def reopen(self) -> None:
        epoch, revision = self.store.store_epoch, self.store.revision
        self.store.close()
        self.open()
        assert (self.store.store_epoch, self.store.revision) == (epoch, revision)

    @rule(page=integers(1, 5))
    def read_the_change_log_from_its_beginning(self, page: int) -> None:
        assert everything(folded(self.store, page), PROJECTS) == everything(self.state, PROJECTS)

    # What must hold after every step.

    @invariant()
    def memory_is_what_is_stored_and_what_the_change_log_tells(self) -> None:
        page = self.store.changes_since(self.fold.revision)
        assert not page.gap
        assert [each.revision for each in page.changes] == sorted(each.revision for each in page.changes)
        self.fold.apply(page.changes)
        read = everything(self.state, PROJECTS)
        assert read == everything(State(self.store.load()), PROJECTS)
        assert read == everything(self.fold, PROJECTS)
        assert self.state.revision == self.store.revision

    @invariant()
    def contents_are_those_of_the_model(self) -> None:
        keys = {group_id: key for key, group_id in self.ids.items()}
        assert self.model.groups == {
            keys[group.id]: ModelGroup(
                group.description, {self.rule_key(each): each.spec.description for each in self.state.rules_of_group(group.id)}
            )
            for project in PROJECTS
            for group in self.state.groups(project)
        }
        assert self.model.servers == {
            (each.project, each.id): ModelServer(
                each.name, tuple(map(str, each.addresses)), each.agent_id, frozenset(keys[group_id] for group_id in each.group_ids)
            )
            for project in PROJECTS
            for each in self.state.servers(project)
        }

    @invariant()
    def every_project_has_its_default_group_and_every_server_a_group(self) -> None:
        for project in self.state.projects:
            default = self.state.group_by_name(project, "DeFault")
            assert default is not None
            assert default.name == "default"
            assert all(1 <= len(each.group_ids) <= LIMITS.groups_per_server for each in self.state.servers(project))


def other_than(project: str) -> str:
    return "q" if project == "p" else "p"


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_a_store_lives_as_the_model_says = StoreMachine.TestCase
