"""What has to change so that a project is what a file says. Pure; depends on the two states alone, never on the order of the file.

The whole file is checked against the project here: InputError lists everything that can't be done, before anything is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from secgroups.cli.drafts import Remote, RuleDraft
from secgroups.cli.errors import InputError
from secgroups.cli.manifest.checks import Wish, problems
from secgroups.cli.manifest.model import GroupEntry, Manifest, ServerEntry
from secgroups.cli.manifest.nodes import PROBLEMS_MAX
from secgroups.cli.manifest.present import Present, PresentServer

Action = Literal["created", "changed", "unchanged", "deleted"]
DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """What becomes of a group. ``rules`` are all that it shall have, None if they stay; so is ``description``.

    ``changes`` says it in lines that begin with +, - or ~.
    """

    name: str
    action: Action
    description: str | None = None
    rules: tuple[RuleDraft, ...] | None = None
    changes: tuple[str, ...] = ()
    kind: Literal["group"] = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStep:
    """What becomes of a server. None stays as it is; ``groups`` are names."""

    name: str
    action: Action
    server_name: str | None = None
    addresses: tuple[str, ...] | None = None
    agent: str | None = None
    groups: tuple[str, ...] | None = None
    changes: tuple[str, ...] = ()
    kind: Literal["server"] = "server"


Step = GroupStep | ServerStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps, in ascending order of name within what they are. ``rules`` are those that each group of the file shall have."""

    groups: tuple[GroupStep, ...]
    servers: tuple[ServerStep, ...]
    rules: Mapping[str, tuple[RuleDraft, ...]]

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.groups, *self.servers)

    @property
    def differs(self) -> bool:
        """True if anything has to change."""
        return any(step.action != "unchanged" for step in self.steps)


def make_plan(manifest: Manifest, present: Present, *, prune: bool) -> Plan:
    """Return what has to change. With ``prune`` also what the file's sections don't list is deleted, the default group excepted."""
    names = _Names(manifest, present)
    groups = {entry.name: _with_known_names(entry, names) for entry in (manifest.groups or {}).values()}
    servers = {
        entry.id: replace(entry, groups=None if entry.groups is None else tuple(sorted(map(names.of, entry.groups))))
        for entry in (manifest.servers or {}).values()
    }
    lost_groups = set(present.groups) - set(groups) - {DEFAULT} if prune and manifest.groups is not None else set()
    lost_servers = set(present.servers) - set(servers) if prune and manifest.servers is not None else set()
    wish = Wish(groups=groups, servers=servers, lost_groups=frozenset(lost_groups), lost_servers=frozenset(lost_servers))
    if found := problems(wish, present):
        more = [f"... and {len(found) - PROBLEMS_MAX} more"] if len(found) > PROBLEMS_MAX else []
        raise InputError(f"{manifest.source} can't be applied; nothing was changed", [*found[:PROBLEMS_MAX], *more])
    return Plan(
        groups=(
            *(_group_step(entry, present) for _, entry in sorted(groups.items())),
            *(GroupStep(name=name, action="deleted") for name in sorted(lost_groups)),
        ),
        servers=(
            *(_server_step(entry, present.servers.get(entry.id)) for _, entry in sorted(servers.items())),
            *(ServerStep(name=name, action="deleted") for name in sorted(lost_servers)),
        ),
        rules={name: entry.rules or () for name, entry in sorted(groups.items())},
    )


class _Names:
    """The names of groups, also for those that the file calls by their id."""

    def __init__(self, manifest: Manifest, present: Present) -> None:
        self._names = {group.id: group.name for group in present.groups.values()}
        self._taken = {*(manifest.groups or {}), *present.groups}

    def of(self, called: str) -> str:
        return called if called in self._taken else self._names.get(called, called)


def _with_known_names(entry: GroupEntry, names: _Names) -> GroupEntry:
    if entry.rules is None:
        return entry
    return replace(entry, rules=tuple(_named(rule, names) for rule in entry.rules))


def _named(rule: RuleDraft, names: _Names) -> RuleDraft:
    if rule.remote.kind != "group":
        return rule
    return replace(rule, remote=Remote("group", names.of(rule.remote.value)))


def _group_step(entry: GroupEntry, present: Present) -> GroupStep:
    group = present.groups.get(entry.name)
    if group is None:
        lines = tuple(f"+ {rule.text}" for rule in entry.rules or ())
        if entry.rules is None:
            lines = ("+ egress any to 0.0.0.0/0", "+ egress any to ::/0")
        return GroupStep(name=entry.name, action="created", description=entry.description, rules=entry.rules, changes=lines)
    lines = tuple(_rule_changes(group.rules, entry.rules)) if entry.rules is not None else ()
    rules = entry.rules if lines else None
    description = entry.description if entry.description != group.description else None
    if description is not None:
        lines = (f"~ description {group.description!r} becomes {description!r}", *lines)
    return GroupStep(
        name=entry.name, action="changed" if lines else "unchanged", description=description, rules=rules, changes=lines
    )


def _rule_changes(before: Sequence[RuleDraft], after: Sequence[RuleDraft]) -> Iterator[str]:
    old = {rule.identity: rule for rule in before}
    new = {rule.identity: rule for rule in after}
    yield from (f"- {rule.text}" for identity, rule in old.items() if identity not in new)
    yield from (f"+ {rule.text}" for identity, rule in new.items() if identity not in old)
    for identity, rule in new.items():
        if identity in old and old[identity].description != rule.description:
            yield f"~ {rule.text}: description {old[identity].description!r} becomes {rule.description!r}"


def rules_of_new_groups(plan: Plan) -> Iterator[str]:
    """Yield, for each group that is made, each rule that servers gain by it: no answer of the controller knows these yet."""
    named = {name for step in plan.servers for name in step.groups or ()}
    for step in plan.groups:
        if step.action == "created" and step.name in named:
            yield from (f"{line}  ({step.name}, new)" for line in step.changes)


def silent_groups(steps: Sequence[GroupStep]) -> Iterator[str]:
    """Yield the groups that would become such that they let nothing out: easily overlooked, since new groups let everything out."""
    for step in steps:
        if step.action != "unchanged" and step.rules is not None and all(rule.direction != "egress" for rule in step.rules):
            yield step.name


def _server_step(entry: ServerEntry, server: PresentServer | None) -> ServerStep:
    if server is None:
        lines = [f"+ addresses {', '.join(entry.addresses or ())}", f"+ groups {', '.join(entry.groups or (DEFAULT,))}"]
        if entry.agent:
            lines.append(f"+ agent {entry.agent}")
        return ServerStep(
            name=entry.id,
            action="created",
            server_name=entry.name,
            addresses=entry.addresses,
            agent=entry.agent,
            groups=entry.groups,
            changes=tuple(lines),
        )
    name = entry.name if entry.name != server.name else None
    addresses = entry.addresses if sorted(entry.addresses or ()) != sorted(server.addresses) else None
    agent = entry.agent if entry.agent != server.agent else None
    groups = entry.groups if entry.groups != server.groups else None
    changes = [
        *([] if name is None else [f"~ name {server.name!r} becomes {name!r}"]),
        *([] if addresses is None else _list_changes("address", server.addresses, addresses)),
        *([] if agent is None else [f"~ agent {server.agent!r} becomes {agent!r}"]),
        *([] if groups is None else _list_changes("group", server.groups, groups)),
    ]
    return ServerStep(
        name=entry.id,
        action="changed" if changes else "unchanged",
        server_name=name,
        addresses=addresses,
        agent=agent,
        groups=groups,
        changes=tuple(changes),
    )


def _list_changes(noun: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    yield from (f"- {noun} {value}" for value in before if value not in after)
    yield from (f"+ {noun} {value}" for value in after if value not in before)
