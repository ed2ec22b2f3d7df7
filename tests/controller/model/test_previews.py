"""What ``validate_only`` promises is what the change then does: to which servers and agents, which rules are gained and lost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from planned_projects import AGENT_IDS, GROUP_NAMES, Builder, Named, Plan, plans, raw_rules, several_rules
from rules_by_definition import RawRule
from store_world import commit

from secgroups.controller import operations as ops
from secgroups.controller.errors import RequestError
from secgroups.controller.model import Group, Server
from secgroups.controller.preview import preview
from secgroups.controller.rulesets import effective_ruleset
from secgroups.controller.store.interface import Transaction

group_names = st.sampled_from([*GROUP_NAMES, "empty"])
server_ids = st.sampled_from(["s1", "s2", "new"])
some_addresses = st.sampled_from([["10.0.0.1"], ["10.0.0.77"], ["10.0.0.78", "2001:db8::77"]])
some_groups = st.lists(group_names, min_size=1, max_size=3, unique=True)
HERE = st.just("p")
projects = st.sampled_from(["p", "p", "p", "new"])


def change_of(names: str, project: st.SearchStrategy[str] = HERE, optional: Any = None, **values: Any) -> Any:
    """Draw the name of an operation, its project and its values; groups by name."""
    rest = {name: drawn for name, drawn in (optional or {}).items() if name not in values}
    drawn = st.fixed_dictionaries(values, optional=rest)
    return st.tuples(st.sampled_from(names.split()), project, drawn)


server_values = {"addresses": some_addresses, "agent_id": st.sampled_from(AGENT_IDS), "group_ids": some_groups}
changes = st.one_of(
    change_of("create_group", projects, name=st.just("more")),
    change_of("update_group", group_id=group_names, name=st.just("other")),
    change_of("update_group", group_id=group_names, description=st.just("d")),
    change_of("delete_group", group_id=group_names),
    change_of("create_rules", group_id=group_names, specs=raw_rules.map(lambda rule: (rule,))),
    change_of("replace_rules", group_id=group_names, specs=several_rules),
    change_of("create_server", HERE, server_values, server_id=server_ids, addresses=some_addresses),
    # The first use of a project, whose default group comes with it.
    change_of("create_server", st.just("new"), server_id=server_ids, addresses=some_addresses),
    change_of("update_server", HERE, {**server_values, "name": st.just("n")}, server_id=server_ids),
    change_of("attach_group detach_group", server_id=server_ids, group_id=group_names),
    change_of("delete_server", server_id=server_ids),
)


@contextmanager
def built(plan: Plan) -> Iterator[Builder]:
    """Build a project in which groups name one another in a circle, and with one more that nobody uses."""
    circle = zip(GROUP_NAMES, GROUP_NAMES[1:] + GROUP_NAMES[:1], strict=True)
    more = {name: (*plan.groups[name], RawRule(protocol=50, remote=f"group {other}")) for name, other in circle}
    with tempfile.TemporaryDirectory(prefix="secgroups-test-") as folder, closing(Builder(Path(folder) / "secgroups.db")) as made:
        for _ in made.straight("p", Plan({**more, "empty": ()}, plan.servers)):
            pass
        yield made


def operation_of(made: Builder, name: str, project: str, values: dict[str, Any]) -> Callable[[Transaction], Any]:
    ids = made.ids("p")
    given_values: dict[str, Any] = {**values, **({"bulk": True} if name == "create_rules" else {})}
    for key, value in values.items():
        if key == "group_id":
            given_values[key] = ids[value]
        elif key == "group_ids":
            given_values[key] = [ids[each] for each in value]
        elif key == "specs":
            given_values[key] = [rule.spec(ids) for rule in value]
        elif key == "addresses":
            given_values[key] = [ip_address(text) for text in value]
    return lambda tx: getattr(ops, name)(tx, project=project, **given_values)


@dataclass(frozen=True)
class Standing:
    """What a server is subject to: rules by name, and all of which a difference touches it."""

    server: Server
    rules: frozenset[Named]
    touching: tuple[object, ...]


def standings(made: Builder, project: str) -> dict[str, Standing]:
    """Return how each server of a project stands."""
    found: dict[str, Standing] = {}
    for server in made.state.servers(project):
        ruleset = effective_ruleset(made.state, project, server.id)
        members = {each.group.id: each.addresses for each in ruleset.remote_groups}
        rules = {
            each.rule.id: (each.rule.spec.identity, members.get(each.rule.spec.remote_group_id or "")) for each in ruleset.rules
        }
        names = sorted(name for name, group_id in made.ids(project).items() if group_id in server.group_ids)
        touching = server.addresses, server.agent_id, server.group_ids, names, rules
        found[server.id] = Standing(server, frozenset(made.named(each.rule) for each in ruleset.rules), touching)
    return found


@settings(deadline=None, max_examples=120)
@given(plans(), changes)
def test_a_change_does_what_its_preview_says(plan: Plan, change: tuple[str, str, dict[str, Any]]) -> None:
    with built(plan) as made:
        project = change[1]
        operation = operation_of(made, *change)
        before, revision = standings(made, project), made.store.revision
        try:
            tried = commit(made.store, operation, validate_only=True)
        except RequestError:
            return
        shown = preview(made.state, tried.changes)
        assert made.store.revision == revision
        more = [each.after for each in tried.changes if isinstance(each.after, Group) and each.before is None]
        gained = sorted(made.named(rule, more) for rule in shown.rules_gained)
        lost = sorted(made.named(rule) for rule in shown.rules_lost)

        made.do(operation)
        after = standings(made, project)
        touched = [key for key in before | after if touching(before, key) != touching(after, key)]
        assert list(shown.server_ids) == sorted(touched)
        sides = [side[key].server for side in (before, after) for key in touched if key in side]
        assert list(shown.agent_ids) == sorted({server.agent_id for server in sides} - {""})
        # Under another name of their group, rules are the same.
        renamed = change[0] == "update_group" and "name" in change[2]
        assert gained == ([] if renamed else sorted(rules_that_differ(after, before)))
        assert lost == ([] if renamed else sorted(rules_that_differ(before, after)))


def touching(side: dict[str, Standing], server_id: str) -> tuple[object, ...] | None:
    return side[server_id].touching if server_id in side else None


def rules_that_differ(these: dict[str, Standing], those: dict[str, Standing]) -> set[Named]:
    """Return the rules that some server is subject to in ``these`` and not in ``those``."""
    nothing: frozenset[Named] = frozenset()
    return {rule for key, one in these.items() for rule in one.rules - (those[key].rules if key in those else nothing)}
