"""What a store holds, as plain dicts, and what SEMANTICS 1 says becomes of each mutation. It knows nothing of the real one.

Objects are known by what people call them: groups by project and name, servers by project and id, rules by group and what they
allow. A mutation changes the model and returns an empty set, or returns the names of the errors that it may be refused with: one
of several things that are wrong is told, no matter which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Key = tuple[str, str]
# Direction, protocol, ports and remote: a CIDR, ``anywhere`` or the key of a group.
RuleKey = tuple[str, int | None, tuple[int, int] | None, str | Key]

EXISTS, INVALID, LIMIT, MISSING = "AlreadyExistsError", "InvalidError", "LimitError", "NotFoundError"
BORN: tuple[RuleKey, ...] = (("EGRESS", None, None, "0.0.0.0/0"), ("EGRESS", None, None, "::/0"))
DEFAULT_DESCRIPTION = "Allows all outbound, and inbound among its own members"


def is_name(text: str) -> bool:
    return 1 <= len(text) <= 128 and text.isprintable() and "/" not in text and text == text.strip(" ")


@dataclass
class ModelGroup:
    """A group with the descriptions of its rules."""

    description: str = ""
    rules: dict[RuleKey, str] = field(default_factory=lambda: dict.fromkeys(BORN, ""))


@dataclass
class ModelServer:
    """A server; what it is called, where it is and what it is attached to."""

    name: str
    addresses: tuple[str, ...]
    agent: str
    groups: frozenset[Key]


@dataclass(kw_only=True)
class Model:
    """Groups by (project, name), servers by (project, id)."""

    groups_max: int
    rules_max: int
    server_groups_max: int
    servers_max: int
    addresses_max: int
    groups: dict[Key, ModelGroup] = field(default_factory=dict)
    servers: dict[Key, ModelServer] = field(default_factory=dict)

    # Groups.

    def use(self, project: str) -> None:
        """Make the default group of a project that is used for the first time."""
        default = project, "default"
        if default not in self.groups:
            rules = dict.fromkeys((*BORN, ("INGRESS", None, None, default)), "")
            self.groups[default] = ModelGroup(DEFAULT_DESCRIPTION, rules)

    def first_use(self, project: str) -> set[str]:
        if not is_name(project):
            return {INVALID}
        self.use(project)
        return set()

    def create_group(self, project: str, name: str, description: str) -> set[str]:
        refused = self._name_refused(project, name) | ({INVALID} if not is_name(project) or len(description) > 512 else set())
        # The default group is there, or comes with this one.
        if max(1, sum(key[0] == project for key in self.groups)) + 1 > self.groups_max:
            refused.add(LIMIT)
        if not refused:
            self.use(project)
            self.groups[project, name] = ModelGroup(description)
        return refused

    def _name_refused(self, project: str, name: str) -> set[str]:
        taken = name.lower() == "default" or (project, name) in self.groups
        return ({EXISTS} if taken else set()) | (set() if is_name(name) else {INVALID})

    def update_group(self, key: Key, name: str | None, description: str | None) -> set[str]:
        if key not in self.groups:
            return {MISSING}
        refused: set[str] = set()
        if name is not None and name != key[1]:
            refused |= {"DefaultGroupError"} if key[1] == "default" else self._name_refused(key[0], name)
            refused |= set() if is_name(name) else {INVALID}
        if description is not None and len(description) > 512:
            refused.add(INVALID)
        if not refused:
            self.groups[key].description = self.groups[key].description if description is None else description
            self._rename(key, (key[0], key[1] if name is None else name))
        return refused

    def _rename(self, old: Key, new: Key) -> None:
        self.groups = {new if key == old else key: group for key, group in self.groups.items()}
        for group in self.groups.values():
            group.rules = {(*rule[:3], new if rule[3] == old else rule[3]): text for rule, text in group.rules.items()}
        for server in self.servers.values():
            server.groups = frozenset(new if key == old else key for key in server.groups)

    def delete_group(self, key: Key) -> set[str]:
        if key not in self.groups:
            return {MISSING}
        if key[1] == "default":
            return {"DefaultGroupError"}
        attached = any(key in server.groups for server in self.servers.values())
        named = any(rule[3] == key for other, group in self.groups.items() if other != key for rule in group.rules)
        if attached or named:
            return {"GroupInUseError"}
        del self.groups[key]
        return set()

    # Rules.

    def _rules_refused(self, project: str, rules: Sequence[RuleKey]) -> set[str]:
        twice = len(set(rules)) != len(rules)
        remotes = [rule[3] for rule in rules if isinstance(rule[3], tuple)]
        unknown = any(key[0] != project or key not in self.groups for key in remotes)
        return ({EXISTS} if twice else set()) | ({MISSING} if unknown else set())

    def create_rules(self, key: Key, rules: dict[RuleKey, str], twice: Sequence[RuleKey]) -> set[str]:
        """Add ``rules``; ``twice`` are those of them that stand in the request once more."""
        if key not in self.groups:
            return {MISSING}
        held = self.groups[key].rules
        refused = self._rules_refused(key[0], [*rules, *twice]) | ({EXISTS} if held.keys() & rules else set())
        if not rules:
            refused.add(INVALID)
        if len(held) + len(rules) + len(twice) > self.rules_max:
            refused.add(LIMIT)
        if not refused:
            held.update(rules)
        return refused

    def replace_rules(self, key: Key, rules: dict[RuleKey, str], twice: Sequence[RuleKey]) -> set[str]:
        if key not in self.groups:
            return {MISSING}
        refused = self._rules_refused(key[0], [*rules, *twice])
        if len(rules) + len(twice) > self.rules_max:
            refused.add(LIMIT)
        if not refused:
            self.groups[key].rules = dict(rules)
        return refused

    def update_rule(self, key: Key, rule: RuleKey, description: str) -> set[str]:
        if key not in self.groups or rule not in self.groups[key].rules:
            return {MISSING}
        if len(description) > 512:
            return {INVALID}
        self.groups[key].rules[rule] = description
        return set()

    def delete_rule(self, key: Key, rule: RuleKey) -> set[str]:
        if key not in self.groups or rule not in self.groups[key].rules:
            return {MISSING}
        del self.groups[key].rules[rule]
        return set()

    # Servers.

    def create_server(self, key: Key, name: str, addresses: Sequence[str], agent: str, groups: Sequence[Key]) -> set[str]:
        refused = self._groups_refused(key[0], groups) if groups else set()
        refused |= self._addresses_refused(key, addresses)
        if key in self.servers:
            refused.add(EXISTS)
        if not all(is_name(text) for text in (*key, name or "x", agent or "x")):
            refused.add(INVALID)
        if sum(other[0] == key[0] for other in self.servers) + 1 > self.servers_max:
            refused.add(LIMIT)
        if not refused:
            self.use(key[0])
            self.servers[key] = ModelServer(name, tuple(addresses), agent, frozenset(groups or [(key[0], "default")]))
        return refused

    def _groups_refused(self, project: str, groups: Sequence[Key]) -> set[str]:
        refused = set() if groups and len(set(groups)) == len(groups) else {INVALID}
        if len(groups) > self.server_groups_max:
            refused.add(LIMIT)
        if any(key[0] != project or key not in self.groups for key in groups):
            refused.add(MISSING)
        return refused

    def _addresses_refused(self, key: Key, addresses: Sequence[str]) -> set[str]:
        refused = set() if addresses and len(set(addresses)) == len(addresses) else {INVALID}
        if len(addresses) > self.addresses_max:
            refused.add(LIMIT)
        others = [server for other, server in self.servers.items() if other != key and other[0] == key[0]]
        if any(address in server.addresses for server in others for address in addresses):
            refused.add(EXISTS)
        return refused

    def update_server(
        self, key: Key, name: str | None, addresses: Sequence[str] | None, agent: str | None, groups: Sequence[Key] | None
    ) -> set[str]:
        if key not in self.servers:
            return {MISSING}
        refused = set() if groups is None else self._groups_refused(key[0], groups)
        refused |= set() if addresses is None else self._addresses_refused(key, addresses)
        if not all(is_name(text) for text in (name or "x", agent or "x")):
            refused.add(INVALID)
        if not refused:
            server = self.servers[key]
            server.name = server.name if name is None else name
            server.addresses = server.addresses if addresses is None else tuple(addresses)
            server.agent = server.agent if agent is None else agent
            server.groups = server.groups if groups is None else frozenset(groups)
        return refused

    def delete_server(self, key: Key) -> set[str]:
        return set() if self.servers.pop(key, None) else {MISSING}

    def attach(self, key: Key, group: Key) -> set[str]:
        if key not in self.servers or group[0] != key[0] or group not in self.groups:
            return {MISSING}
        groups = self.servers[key].groups | {group}
        if len(groups) > self.server_groups_max:
            return {LIMIT}
        self.servers[key].groups = groups
        return set()

    def detach(self, key: Key, group: Key) -> set[str]:
        if key not in self.servers or group not in self.servers[key].groups:
            return {MISSING}
        if len(self.servers[key].groups) == 1:
            return {"LastGroupError"}
        self.servers[key].groups -= {group}
        return set()
