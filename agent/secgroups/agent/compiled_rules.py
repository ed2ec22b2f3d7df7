"""Which rules are installed in the compiled engine, and how a change of groups, members or bindings is carried over to it.

A **policy** is a distinct set of groups; all servers with the same groups share one. Every rule of a group is installed once in
each policy that has the group. Rules, labels and policies have numbers, which the core uses as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secgroups.agent.flow import ICMP, Address
from secgroups.agent.members import IPV6_BYTES
from secgroups.agent.ruleset import Network, Rule

if TYPE_CHECKING:
    from secgroups.agent._engine import Core

ANY_PROTOCOL = 256
_PORT_MAX = 65_535

_ANYWHERE, _ALL_IPV4, _ALL_IPV6 = 1, 2, 3
# Labels from here on: even ones are networks, odd ones groups.
_FIRST_NETWORK, _FIRST_GROUP = 4, 5

# Ranks are spread over this range; a new last rule is this far behind the one before.
_RANK_END = 1 << 63
_RANK_STEP = 1 << 32

# What stands before the four bytes of an IPv4 address in the core.
_MAPPED = b"\0" * 10 + b"\xff\xff"


def packed(address: Address) -> bytes:
    """Return 16 bytes: IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else _MAPPED + address.packed


class Ranks:
    """Numbers in the order of rule ids (then group ids), with room between them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._keys: list[tuple[str, str]] = []
        self._ranks: list[int] = []
        self._numbers: list[int] = []

    def insert(self, key: tuple[str, str], number: int) -> int:
        """Return the rank of a rule that comes; those of others are set anew if there is no room."""
        at = bisect_left(self._keys, key)
        before = self._ranks[at - 1] if at else 0
        after = self._ranks[at] if at < len(self._ranks) else min(_RANK_END, before + 2 * _RANK_STEP)
        rank = (before + after) // 2
        self._keys.insert(at, key)
        self._ranks.insert(at, rank)
        self._numbers.insert(at, number)
        if rank in (before, after):
            self._spread()
        return self._ranks[at]

    def remove(self, key: tuple[str, str]) -> None:
        """Take out a rule that goes."""
        at = bisect_left(self._keys, key)
        del self._keys[at], self._ranks[at], self._numbers[at]

    def _spread(self) -> None:
        step = _RANK_END // (len(self._ranks) + 1)
        self._ranks = [step * place for place in range(1, len(self._ranks) + 1)]
        for number, rank in zip(self._numbers, self._ranks, strict=True):
            self._core.set_rank(number, rank)


class RuleNumbers:
    """Numbers of rules. One that is gone keeps its number, and its id, for as long as a flow or a fragment names it."""

    def __init__(self, core: Core, note: Callable[..., None]) -> None:
        """``note`` is told of numbers that come to mean something, and of those that no longer do."""
        self._core = core
        self._note = note
        self.rule_ids = core.rule_ids
        self.group_ids: dict[int, str] = {}
        self.by_key: dict[tuple[str, str], int] = {}
        self._handles = core.numbers
        self._handle_of: dict[int, int] = {}
        self._last_handle = 0
        self._gone: dict[int, None] = {}
        self._free: list[int] = []
        # How many have to be gone before it is asked again which of them nothing names.
        self._collect_at = 0
        self._used = 1
        self._room = 0

    def take(self, rule_id: str, group_id: str) -> int:
        """Return the number of a rule that comes into force; the one it had if something still names it."""
        number = self.by_key.get((rule_id, group_id))
        if number is not None:
            self._gone.pop(number, None)
            return number
        if self._gone and not self._free and len(self._gone) >= self._collect_at:
            self._collect()
        if self._free:
            number = self._free.pop()
        else:
            number = self._used
            self._used += 1
            if number >= self._room:
                self._room = max(64, self._room * 2)
                self._core.grow_rules(self._room)
        self.by_key[rule_id, group_id] = number
        self.rule_ids[number], self.group_ids[number] = rule_id, group_id
        self._last_handle += 1
        self._handles[self._last_handle], self._handle_of[number] = number, self._last_handle
        self._note("+r", number, self._last_handle, rule_id, group_id)
        return number

    def go_on(self, rules: Mapping[int, tuple[int, str, str]]) -> None:
        """Take over rules by number (handle, id, group id), none of which is in force."""
        self._used = max(rules, default=0) + 1
        self._room = max(64, self._used * 2)
        self._core.grow_rules(self._room)
        for number, (handle, rule_id, group_id) in rules.items():
            self.by_key[rule_id, group_id] = number
            self.rule_ids[number], self.group_ids[number] = rule_id, group_id
            self._handles[handle], self._handle_of[number] = number, handle
            self._core.set_handle(number, handle)
            self._gone[number] = None
        self._last_handle = max(self._handles, default=0)
        self._free = [number for number in range(1, self._used) if number not in rules]

    def give(self, number: int) -> None:
        """A rule is no longer in force."""
        self._core.end_rule(number)
        self._gone[number] = None

    def give_all(self) -> None:
        """No rule is in force any more."""
        for number in self.by_key.values():
            self.give(number)

    def handle_of(self, number: int) -> int:
        """Return what names the rule in packed verdicts; never that of another rule."""
        return self._handle_of[number]

    def rule_id(self, handle: int) -> str:
        """Return the id of the rule with a handle, empty if nothing names that any more."""
        number = self._handles.get(handle)
        return "" if number is None else self.rule_ids[number]

    def adopt(self, other: RuleNumbers) -> None:
        """Take over the numbers of another core, none of which is in force."""
        self.rule_ids.update(other.rule_ids)
        self.group_ids, self.by_key, self._gone = other.group_ids, other.by_key, other._gone
        self._handles.update(other._handles)
        self._handle_of, self._last_handle = other._handle_of, other._last_handle
        self._free, self._used, self._room = other._free, other._used, other._room
        self._core.grow_rules(self._room)
        for number, handle in self._handle_of.items():
            self._core.set_handle(number, handle)

    def _collect(self) -> None:
        """Free the numbers that nothing names. Those that are left are not asked about again before there are twice as many."""
        for number in [number for number in self._gone if not self._core.rule_users(number)]:
            del self._gone[number]
            del self.by_key[self.rule_ids.pop(number), self.group_ids.pop(number)]
            del self._handles[self._handle_of.pop(number)]
            self._free.append(number)
            self._note("-r", number)
        self._collect_at = 2 * len(self._gone)
        if self._free:
            self._core.forget_verdicts()


@dataclass(slots=True, eq=False)
class Policy:
    """A distinct set of groups and the servers that have it."""

    number: int
    group_ids: frozenset[str]
    servers: int = 0


@dataclass(slots=True, eq=False)
class _Group:
    rules: dict[str, Rule] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    policies: set[Policy] = field(default_factory=set)


@dataclass(slots=True)
class _Prefix:
    """A network that rules name as remote, and how many do."""

    label: int
    number: int
    rules: int = 0


class Rulebook:
    """What is installed in ``core``. Methods that change it want the core locked."""

    def __init__(self, core: Core, numbers: RuleNumbers) -> None:
        self._core = core
        self._numbers = numbers
        self._ranks = Ranks(core)
        self._groups: dict[str, _Group] = {}
        self._policies: dict[frozenset[str], Policy] = {}
        self._networks: dict[Network, _Prefix] = {}
        self._group_labels: dict[str, int] = {}
        # Groups whose label may have become idle.
        self._maybe_idle: set[str] = set()
        self._free_labels: tuple[list[int], list[int]] = ([], [])
        self._next_labels = [_FIRST_NETWORK, _FIRST_GROUP]
        # For each group that rules name as remote, the groups whose rules do, and how many.
        self._naming: dict[str, dict[str, int]] = {}

    def has(self, group_ids: Iterable[str]) -> bool:
        """Whether the rules of all these groups are held."""
        return all(group_id in self._groups for group_id in group_ids)

    def with_rules(self, group_ids: Iterable[str]) -> frozenset[str]:
        """Return those of the groups that have rules."""
        return frozenset(group_id for group_id in group_ids if group_id in self._groups and self._groups[group_id].rules)

    def naming(self, group_id: str) -> Iterable[str]:
        """Return the groups whose rules name a group as remote."""
        return self._naming.get(group_id, ())

    def differs(self, group_id: str, rules: Mapping[str, Rule]) -> bool:
        """Whether a group would have other rules than it has."""
        held = self._groups.get(group_id)
        return held is None or held.rules != rules

    def set_group(self, group_id: str, rules: Mapping[str, Rule]) -> None:
        """Give a group these rules, by their ids; what stays is not touched."""
        group = self._groups.setdefault(group_id, _Group())
        gone = [rule for rule_id, rule in group.rules.items() if rules.get(rule_id) != rule]
        numbers_gone = [group.numbers[rule.id] for rule in gone]
        for policy in group.policies:
            self._core.change_policy(policy.number, numbers_gone, [])
        for rule in gone:
            self._remove_rule(group_id, group, rule, stays=rule.id in rules)
        numbers_new = [self._add_rule(group_id, group, rule) for rule_id, rule in rules.items() if rule_id not in group.rules]
        for policy in group.policies:
            self._core.change_policy(policy.number, [], numbers_new)

    def drop_group(self, group_id: str) -> None:
        """Remove a group that no policy has any more."""
        self.set_group(group_id, {})
        del self._groups[group_id]

    def change_members(self, group_id: str, added: Iterable[bytes], removed: Iterable[bytes]) -> None:
        """Addresses, as bytes in network order, join and leave a group; those that join are not in it, those that leave are."""
        label = self._label_of_group(group_id)
        self._maybe_idle.add(group_id)
        for address in removed:
            self._core.remove_member(address if len(address) == IPV6_BYTES else _MAPPED + address, label)
        for address in added:
            self._core.add_member(address if len(address) == IPV6_BYTES else _MAPPED + address, label)

    def join_policy(self, group_ids: Iterable[str]) -> Policy:
        """Return the policy of these groups, which are held, for one more server."""
        key = frozenset(group_ids)
        policy = self._policies.get(key)
        if policy is None:
            policy = self._policies[key] = Policy(number=self._core.add_policy(), group_ids=key)
            for group_id in key:
                group = self._groups[group_id]
                group.policies.add(policy)
                self._core.change_policy(policy.number, [], list(group.numbers.values()))
        policy.servers += 1
        return policy

    def leave_policy(self, policy: Policy) -> None:
        """One server less; the last one takes the policy along."""
        policy.servers -= 1
        if policy.servers:
            return
        for group_id in policy.group_ids:
            group = self._groups[group_id]
            group.policies.discard(policy)
            self._core.empty_policy(policy.number, list(group.numbers.values()))
        self._core.remove_policy(policy.number)
        del self._policies[policy.group_ids]

    def _add_rule(self, group_id: str, group: _Group, rule: Rule) -> int:
        number = self._numbers.take(rule.id, group_id)
        rank = self._ranks.insert((rule.id, group_id), number)
        protocol, first, last = _matched(rule)
        label = self._take_label(group_id, rule)
        self._core.set_rule(number, self._numbers.handle_of(number), rank, label, protocol, first, last, rule.direction)
        group.rules[rule.id], group.numbers[rule.id] = rule, number
        return number

    def _remove_rule(self, group_id: str, group: _Group, rule: Rule, *, stays: bool) -> None:
        """Take a rule out; one that ``stays``, with other content, keeps its number and what was counted."""
        number = group.numbers.pop(rule.id)
        del group.rules[rule.id]
        self._give_label(group_id, rule)
        self._ranks.remove((rule.id, group_id))
        if not stays:
            self._numbers.give(number)

    def _take_label(self, group_id: str, rule: Rule) -> int:
        remote = rule.remote
        if remote is None:
            return _ANYWHERE
        if isinstance(remote, str):
            users = self._naming.setdefault(remote, {})
            users[group_id] = users.get(group_id, 0) + 1
            return self._label_of_group(remote)
        if remote.prefixlen == 0:
            return _ALL_IPV4 if remote.version == 4 else _ALL_IPV6
        prefix = self._networks.get(remote)
        if prefix is None:
            label = self._new_label(0)
            address = int(remote.network_address)
            number = self._core.add_prefix(address >> 64, address & (1 << 64) - 1, remote.prefixlen, remote.version == 4, label)
            prefix = self._networks[remote] = _Prefix(label, number)
        prefix.rules += 1
        return prefix.label

    def _give_label(self, group_id: str, rule: Rule) -> None:
        remote = rule.remote
        if isinstance(remote, str):
            users = self._naming[remote]
            users[group_id] -= 1
            if not users[group_id]:
                del users[group_id]
            if not users:
                del self._naming[remote]
                self._maybe_idle.add(remote)
        elif remote is not None and remote.prefixlen:
            prefix = self._networks[remote]
            prefix.rules -= 1
            if not prefix.rules:
                del self._networks[remote]
                self._core.remove_prefix(prefix.number)
                self._free_labels[0].append(prefix.label)

    def forget_labels(self, held_sets: Mapping[str, object]) -> None:
        """Free the labels of groups that no rule names and whose members are not held."""
        for group_id in self._maybe_idle:
            if group_id in self._group_labels and group_id not in self._naming and group_id not in held_sets:
                self._free_labels[1].append(self._group_labels.pop(group_id))
        self._maybe_idle.clear()

    def _label_of_group(self, group_id: str) -> int:
        label = self._group_labels.get(group_id)
        if label is None:
            label = self._group_labels[group_id] = self._new_label(1)
        return label

    def _new_label(self, kind: int) -> int:
        free = self._free_labels[kind]
        if free:
            return free.pop()
        label = self._next_labels[kind]
        self._next_labels[kind] += 2
        return label


def _matched(rule: Rule) -> tuple[int, int, int]:
    """Return protocol, first and last of what the core compares; for ICMP that is type * 256 + code."""
    if rule.protocol == ICMP:
        if rule.icmp_type is None:
            return ICMP, 0, _PORT_MAX
        first = rule.icmp_type << 8
        return (ICMP, first, first | 0xFF) if rule.icmp_code is None else (ICMP, first | rule.icmp_code, first | rule.icmp_code)
    first, last = rule.ports or (0, _PORT_MAX)
    return ANY_PROTOCOL if rule.protocol is None else rule.protocol, first, last
