"""Carries out the changes of a case: names become ids, rules become messages, and what was made is remembered by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from secgroups.lab.cases.model import (
    DEFAULT_GROUP,
    AddGroup,
    AddRule,
    AddServer,
    Attach,
    Change,
    DeleteEqualRule,
    DeleteGroup,
    DeleteRule,
    Detach,
    GroupSetup,
    Name,
    Ref,
    RemoveServer,
    RenameGroup,
    RuleText,
    ServerSetup,
    SetAddresses,
    SetGroups,
    SetRules,
    Unparsable,
)
from secgroups.lab.cases.roster import Roster, canonical_group
from secgroups.lab.cases.rules import BORN_EGRESS, identity_of, rule_spec
from secgroups.lab.cases.world import RefusedError, World
from secgroups.v1.types_pb2 import RuleSpec

# An id that nobody has.
NO_ID = "00000000-0000-7000-8000-000000000000"


@dataclass
class Changes:
    """Changes ``world`` and keeps ``roster`` in step. All methods raise RefusedError."""

    world: World
    roster: Roster
    group_ids: dict[Name, str] = field(default_factory=dict)
    # The project and id of each rule that was given a name.
    rule_ids: dict[str, tuple[str, str]] = field(default_factory=dict)

    def set_up(self, groups: Sequence[GroupSetup], servers: Sequence[ServerSetup]) -> None:
        """Make the groups, then their rules in order, then the servers."""
        projects = {self.roster.project, *(setup.group.project for setup in groups), *(setup.server.project for setup in servers)}
        for project in sorted(filter(None, projects)):
            # A project has its default group from its first use; let that not be a step that must change nothing.
            self.group_id(Name(project, DEFAULT_GROUP))
        for group in groups:
            # The default group is there already.
            if canonical_group(group.group.name) != DEFAULT_GROUP:
                self._create_group(group)
        for group in groups:
            self._fill_group(group)
        for server in servers:
            self.make(AddServer(setup=server))

    def make(self, change: Change) -> None:
        """Carry out one change; the roster moves on."""
        match change:
            case Unparsable(message=message):
                raise RefusedError("INVALID_ARGUMENT", message)
            case AddRule() | DeleteRule() | DeleteEqualRule() | SetRules():
                self._change_rules(change)
            case AddGroup() | DeleteGroup() | RenameGroup():
                self._change_groups(change)
            case _:
                self._change_servers(change)
        self.roster.apply(change)

    def ids_of(self, text: str) -> set[str]:
        """Return the ids of everything that is or was called ``text``: a rule's name, a group, a server."""
        project, slash, name = text.rpartition("/")
        ref = Ref(project if slash else None, name)
        ids = {self.rule_ids[text][1]} if text in self.rule_ids else set()
        group, server = self.roster.group(ref), self.roster.server(ref)
        if self.roster.has_group(group) or group in self.group_ids:
            ids.add(self.group_id(group))
        if server in self.roster.ever:
            ids.add(server.name)
        return ids

    def group_id(self, name: Name) -> str:
        """Return the id of a group, ``NO_ID`` if there never was one of that name."""
        if name not in self.group_ids:
            found = self.world.find_group(name.project, name.name)
            if found is None:
                return NO_ID
            self.group_ids[name] = found
        return self.group_ids[name]

    def _group_id_of(self, ref: Ref, home: str) -> str:
        return self.group_id(self.roster.group(ref, home))

    def _change_rules(self, change: AddRule | DeleteRule | DeleteEqualRule | SetRules) -> None:
        if isinstance(change, DeleteRule):
            project, rule_id = self.rule_ids.get(change.alias, (self.roster.project, NO_ID))
            self.world.delete_rule(project, rule_id)
            return
        group = self.roster.group(change.group)
        group_id = self.group_id(group)
        match change:
            case AddRule(rule=rule):
                made = [self.world.create_rule(group.project, group_id, self._spec(rule, group.project))]
                self._name_rules(group.project, [rule], made)
            case DeleteEqualRule(rule=rule):
                wanted = identity_of(self._spec(rule, group.project))
                rules = self.world.rules(group.project, group_id)
                found = [rule.id for rule in rules if identity_of(rule.spec) == wanted]
                self.world.delete_rule(group.project, found[0] if found else NO_ID)
            case SetRules(rules=texts):
                self._replace_rules(group, texts)

    def _change_groups(self, change: AddGroup | DeleteGroup | RenameGroup) -> None:
        match change:
            case AddGroup(setup=setup):
                name = self._create_group(setup)
                try:
                    self._fill_group(setup)
                except RefusedError:
                    # The step is one change: it happens whole or not at all.
                    self.world.delete_group(name.project, self.group_ids.pop(name))
                    self.roster.groups.discard(name)
                    raise
            case DeleteGroup(group=ref):
                group = self.roster.group(ref)
                self.world.delete_group(group.project, self.group_id(group))
            case RenameGroup(group=ref, name=text):
                group = self.roster.group(ref)
                group_id = self.group_id(group)
                self.world.rename_group(group.project, group_id, text)
                self.group_ids.pop(group, None)
                self.group_ids[Name(group.project, canonical_group(text))] = group_id

    def _change_servers(self, change: Change) -> None:
        match change:
            case AddServer(setup=setup):
                server = self.roster.server(setup.server)
                group_ids = [self._group_id_of(group, server.project) for group in setup.groups or ()]
                self.world.create_server(server.project, server.name, setup.addresses, group_ids)
            case RemoveServer(server=ref):
                server = self.roster.server(ref)
                self.world.delete_server(server.project, server.name)
            case SetAddresses(server=ref, addresses=addresses):
                server = self.roster.server(ref)
                self.world.set_addresses(server.project, server.name, addresses)
            case Attach(server=ref, group=group):
                server = self.roster.server(ref)
                self.world.attach(server.project, server.name, self._group_id_of(group, server.project))
            case Detach(server=ref, group=group):
                server = self.roster.server(ref)
                self.world.detach(server.project, server.name, self._group_id_of(group, server.project))
            case SetGroups(server=ref, groups=groups):
                server = self.roster.server(ref)
                group_ids = [self._group_id_of(group, server.project) for group in groups]
                self.world.set_groups(server.project, server.name, group_ids)

    def _create_group(self, setup: GroupSetup) -> Name:
        name = Name(setup.group.project or self.roster.project, setup.group.name)
        self.group_ids[name] = self.world.create_group(name.project, name.name)
        # Its rules may name it as their remote.
        self.roster.groups.add(name)
        return name

    def _fill_group(self, setup: GroupSetup) -> None:
        group = self.roster.group(setup.group)
        if setup.replace:
            self._replace_rules(group, setup.rules)
            return
        if setup.without_egress:
            for rule in self.world.rules(group.project, self.group_id(group)):
                if identity_of(rule.spec) in BORN_EGRESS:
                    self.world.delete_rule(group.project, rule.id)
        if setup.rules:
            specs = [self._spec(rule, group.project) for rule in setup.rules]
            made = self.world.create_rules(group.project, self.group_id(group), specs)
            self._name_rules(group.project, setup.rules, made)

    def _replace_rules(self, group: Name, rules: Sequence[RuleText]) -> None:
        specs = [self._spec(rule, group.project) for rule in rules]
        self._name_rules(group.project, rules, self.world.replace_rules(group.project, self.group_id(group), specs))

    def _name_rules(self, project: str, rules: Sequence[RuleText], ids: Sequence[str]) -> None:
        self.rule_ids.update((rule.alias, (project, id_)) for rule, id_ in zip(rules, ids, strict=True) if rule.alias)

    def _spec(self, rule: RuleText, project: str) -> RuleSpec:
        return rule_spec(rule, lambda ref: self._group_id_of(ref, project))
