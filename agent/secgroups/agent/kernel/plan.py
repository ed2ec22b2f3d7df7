"""From what is in the kernel to what is to be there: the fewest commands, in at most two transactions.

``prepare`` adds what no packet meets yet; ``flip`` makes it count and takes away the old, atomically. Two, because a set with
intervals in several dimensions shows its elements only a moment after the transaction that filled it has begun to hold
(``nft_set_pipapo`` publishes its copy after the generation has changed): rules that came with it would meet it empty or, had it
been changed in place, as it was. Sets of plain addresses have no such moment and are changed in place; where no set with intervals
is new, one transaction does.

Each side of a policy has a number P, and with each change of its rules a content number N:

    egress-P        epoch is current ─► accept;  otherwise ─► egress-P.N-4 or -6          stable, its rules are written anew
    egress-P-pass   stamp the epoch, accept                                               stable, its rules are written anew
    egress-P.N-4    checks, look-ups ─► egress-P-pass;  none found ─► deny-egress-judged  never changed, replaced by P.N+1

A side gets a new epoch when something may no longer be allowed: its rules change or a remote group loses a member. A member that
joins needs none: what was allowed stays so, and what was not has no epoch that is current.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from secgroups.agent.flow import Direction, Reason
from secgroups.agent.kernel.content import content, content_names
from secgroups.agent.kernel.denials import deny
from secgroups.agent.kernel.log_prefix import Way, log_prefix
from secgroups.agent.kernel.marks import MarkLayout
from secgroups.agent.kernel.policy import VERSIONS, PolicyKey, SideKey, SideRules, Target, of_version
from secgroups.agent.kernel.skeleton import ADDRESS_TYPES, UNCONFIRMED, WITHOUT_CONNECTION
from secgroups.agent.kernel.statements import ACCEPT, Command, Table, bits, ct, goto, key_of, log, match, meta, set_mark

PACKED_BYTES = {4: 4, 6: 16}
# The elements of a set are a frozenset, those of a verdict map a dict to the chain they go to.
Elements = Mapping[Any, str] | frozenset[Any]
# The members, packed, that have left a group, and those that have come.
Moved = tuple[frozenset[bytes], frozenset[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a policy as it is in the kernel; ``epoch`` 0 means that every packet is judged by the rules."""

    number: int
    content: int
    epoch: int
    rules: SideRules
    direction: Direction

    @property
    def chain(self) -> str:
        return f"{self.direction.name.lower()}-{self.number}"

    @property
    def pass_chain(self) -> str:
        return f"{self.chain}-pass"

    @property
    def content_prefix(self) -> str:
        return f"{self.chain}.{self.content}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What a table of ours holds: ``elements`` of the shared sets, ``groups`` the numbers of the sets of members of the target.

    ``next_epochs`` is None while no epochs are given out.
    """

    target: Target = field(default_factory=Target)
    sides: Mapping[SideKey, Side] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    elements: Mapping[str, Elements] = field(default_factory=dict)
    next_number: int = 1
    next_epochs: Mapping[Direction, int] | None = None

    def out_of_epochs(self, marks: MarkLayout) -> bool:
        """Whether a side goes without an epoch because all have been used."""
        given = self.next_epochs
        return given is not None and any(given[way] > marks.field(way).epochs_max for way in Direction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Transactions to be made in this order, either may be empty, and what is installed after them."""

    prepare: list[Command]
    flip: list[Command]
    installed: Installed


class Planner:
    """Plans for one table."""

    def __init__(self, table: Table, marks: MarkLayout, ports: Mapping[str, str], openings_to: int | None = None) -> None:
        """``ports`` gives the interface by server, ``openings_to`` the log group that is told what opens a connection."""
        self._table = table
        self._marks = marks
        self._ports = ports
        self._openings_to = openings_to

    def change(self, installed: Installed, target: Target) -> Plan:
        """Return what makes ``installed`` enforce ``target``."""
        numbers = _Numbers(installed.next_number)
        groups = {group_id: installed.groups.get(group_id) or numbers.take() for group_id in target.members}
        moved = {
            group_id: _moved(held, target.members.get(group_id, frozenset())) for group_id, held in installed.target.members.items()
        }
        shrunk = {group_id for group_id, (gone, _) in moved.items() if gone}
        epochs = dict(installed.next_epochs) if installed.next_epochs is not None else None
        sides = {key: self._side(installed, key, rules, shrunk, numbers, epochs) for key, rules in target.sides.items()}
        after = Installed(
            target=target,
            sides=sides,
            groups=groups,
            elements=self._elements(target, sides, installed),
            next_number=numbers.next,
            next_epochs=epochs,
        )
        prepare = [*self._new_groups(installed, after), *self._new_sides(installed, after)]
        flip = [
            *self._member_changes(after, moved),
            *self._element_changes(installed.elements, after.elements),
            *self._rewritten(installed, after),
            *self._old_sides(installed, after),
            *self._old_groups(installed, after),
        ]
        if not any("stmt" in command["add"].get("set", ()) for command in prepare):
            # No boxes: nothing that would show late.
            return Plan(prepare=[], flip=[*prepare, *flip], installed=after)
        return Plan(prepare=prepare, flip=flip, installed=after)

    def whole(self, installed: Installed) -> list[Command]:
        """Return the commands that would make all of ``installed`` in a table that has only the shared chains and sets."""
        nothing = Installed()
        return [
            *self._new_groups(nothing, installed),
            *self._new_sides(nothing, installed),
            *self._element_changes(nothing.elements, installed.elements),
        ]

    def openings_told(self, installed: Installed) -> Iterator[Command]:
        """Yield the commands after which what is installed tells of openings as this planner does."""
        for side in installed.sides.values():
            yield self._table.flush_chain(side.pass_chain)
            yield from self._pass_rules(side)

    def without_epochs(self, installed: Installed) -> Plan:
        """Return what has every packet judged by the rules, and no connection stamped."""
        return self._with_sides(installed, {key: replace(side, epoch=0) for key, side in installed.sides.items()}, None)

    def with_epochs(self, installed: Installed) -> Plan:
        """Return what gives every side an epoch. No connection may have one of ours: see ``without_epochs``."""
        epochs = dict.fromkeys(Direction, 1)
        sides = {key: replace(side, epoch=self._take(epochs, key.direction)) for key, side in installed.sides.items()}
        return self._with_sides(installed, sides, epochs)

    def _with_sides(self, installed: Installed, sides: Mapping[SideKey, Side], epochs: Mapping[Direction, int] | None) -> Plan:
        after = replace(installed, sides=sides, next_epochs=epochs)
        return Plan(prepare=[], flip=list(self._rewritten(installed, after)), installed=after)

    def _take(self, epochs: dict[Direction, int] | None, direction: Direction) -> int:
        if epochs is None:
            return 0
        epoch = epochs[direction]
        if epoch > self._marks.field(direction).epochs_max:
            return 0
        epochs[direction] += 1
        return epoch

    def _side(
        self,
        installed: Installed,
        key: SideKey,
        rules: SideRules,
        shrunk: set[str],
        numbers: _Numbers,
        epochs: dict[Direction, int] | None,
    ) -> Side:
        held = installed.sides.get(key)
        if held is None:
            epoch = self._take(epochs, key.direction)
            return Side(number=numbers.take(), content=1, epoch=epoch, rules=rules, direction=key.direction)
        changed = held.rules is not rules and held.rules != rules
        if changed or shrunk & rules.remote_groups():
            epoch = self._take(epochs, key.direction)
            return replace(held, content=held.content + changed, epoch=epoch, rules=rules)
        return held

    def _elements(self, target: Target, sides: Mapping[SideKey, Side], installed: Installed) -> Mapping[str, Elements]:
        if target.guarded is installed.target.guarded:
            # The same servers have the same policies, and the chains of those keep their names.
            return installed.elements
        return self._shared_elements(target, sides)

    def _shared_elements(self, target: Target, sides: Mapping[SideKey, Side]) -> dict[str, Elements]:
        elements: dict[str, Elements] = {}
        for version in VERSIONS:
            addresses = [address for address in target.guarded if address.version == version]
            elements[f"servers{version}"] = frozenset(addresses)
            elements[f"pairs{version}"] = frozenset((address, address) for address in addresses)
            for name, direction in (("opens", Direction.EGRESS), ("answers", Direction.INGRESS)):
                elements[f"{name}{version}"] = {
                    address: _chain_for(target.guarded[address], direction, sides) for address in addresses
                }
            elements[f"port_sources{version}"] = frozenset(
                (port, address)
                for server, port in self._ports.items()
                for address in of_version(target.servers.get(server, frozenset()), version)
            )
        known = {port: server for server, port in self._ports.items() if server in target.servers}
        elements["ports"] = frozenset(self._ports.values())
        elements["known_ports"] = frozenset(known)
        elements["port_answers"] = {
            port: _chain_for(self._policy_of(target, server), Direction.INGRESS, sides) for port, server in known.items()
        }
        return elements

    @staticmethod
    def _policy_of(target: Target, server: str) -> PolicyKey | None:
        return next((target.guarded[address] for address in target.servers[server]), None)

    def _new_groups(self, before: Installed, after: Installed) -> Iterator[Command]:
        for group_id, number in after.groups.items():
            if group_id in before.groups:
                continue
            for version, members in _by_version(after.target.members[group_id]):
                name = members_set(number, version)
                yield self._table.add_set(name, (ADDRESS_TYPES[version],))
                if members:
                    yield self._table.add_elements(name, map(key_of, members))

    def _old_groups(self, before: Installed, after: Installed) -> Iterator[Command]:
        for group_id, number in before.groups.items():
            if group_id not in after.groups:
                yield from (self._table.delete_set(members_set(number, version)) for version in VERSIONS)

    def _new_sides(self, before: Installed, after: Installed) -> Iterator[Command]:
        members = {
            group_id: {version: members_set(number, version) for version in VERSIONS} for group_id, number in after.groups.items()
        }
        for key, side in after.sides.items():
            held = before.sides.get(key)
            if held is None:
                yield self._table.add_chain(side.pass_chain)
                yield self._table.add_chain(side.chain)
                yield from self._pass_rules(side)
            if held is None or held.content != side.content:
                yield from content(self._table, side.content_prefix, side.direction, side.pass_chain, side.rules, members)
            if held is None:
                yield from self._entry_rules(side)

    def _rewritten(self, before: Installed, after: Installed) -> Iterator[Command]:
        for key, side in after.sides.items():
            held = before.sides.get(key)
            if held is None or (held.content, held.epoch) == (side.content, side.epoch):
                continue
            yield self._table.flush_chain(side.chain)
            yield from self._entry_rules(side)
            if held.epoch != side.epoch:
                yield self._table.flush_chain(side.pass_chain)
                yield from self._pass_rules(side)

    def _old_sides(self, before: Installed, after: Installed) -> Iterator[Command]:
        for key, held in before.sides.items():
            side = after.sides.get(key)
            if side is not None and side.content == held.content:
                continue
            chains, sets = content_names(held.content_prefix, held.rules)
            if side is None:
                chains = [held.chain, *chains, held.pass_chain]
            yield from (self._table.flush_chain(chain) for chain in chains)
            yield from (self._table.delete_chain(chain) for chain in chains)
            yield from (self._table.delete_set(name) for name in sets)

    def _entry_rules(self, side: Side) -> Iterator[Command]:
        if side.epoch:
            field = self._marks.field(side.direction)
            # Only a connection that was let pass has it: our bits of one that is new were cleared on the way here.
            current = match(bits(ct("mark"), field.mask), field.value(side.epoch))
            yield self._table.add_rule(side.chain, "judged by the rules in force", current, ACCEPT)
        ipv4 = match(meta("nfproto"), "ipv4")
        yield self._table.add_rule(side.chain, "judge", ipv4, goto(f"{side.content_prefix}-4"))
        yield self._table.add_rule(side.chain, "judge", goto(f"{side.content_prefix}-6"))

    def _pass_rules(self, side: Side) -> Iterator[Command]:
        if self._openings_to is not None:
            for what, way in ((UNCONFIRMED, Way.OPENER), (WITHOUT_CONNECTION, Way.ALONE)):
                told = log(log_prefix(side.direction, Reason.NEW, way), self._openings_to)
                yield self._table.add_rule(side.pass_chain, "new, told", what, told)
        if side.epoch:
            field = self._marks.field(side.direction)
            yield self._table.add_rule(side.pass_chain, "allowed", set_mark(field.mask, field.value(side.epoch)), ACCEPT)
        else:
            yield self._table.add_rule(side.pass_chain, "allowed", ACCEPT)

    def _member_changes(self, after: Installed, moved: Mapping[str, Moved]) -> Iterator[Command]:
        for group_id, (gone, come) in moved.items():
            if group_id not in after.groups:
                continue
            for version, members in _by_version(gone):
                if members:
                    yield self._table.delete_elements(members_set(after.groups[group_id], version), map(key_of, members))
            for version, members in _by_version(come):
                if members:
                    yield self._table.add_elements(members_set(after.groups[group_id], version), map(key_of, members))

    def _element_changes(self, before: Mapping[str, Elements], after: Mapping[str, Elements]) -> Iterator[Command]:
        for name, new in after.items():
            old = before.get(name)
            if old is new:
                continue
            gone, come = _difference(old if old is not None else frozenset(), new)
            if gone:
                yield self._table.delete_elements(name, map(key_of, gone))
            if come:
                yield self._table.add_elements(name, come)


def members_set(number: int, version: int) -> str:
    """Return the name of the set of a group's members."""
    return f"members-{number}-{version}"


def _by_version(packed: Iterable[bytes]) -> list[tuple[int, list[bytes]]]:
    return [(version, [each for each in packed if len(each) == PACKED_BYTES[version]]) for version in VERSIONS]


def _moved(old: frozenset[bytes], new: frozenset[bytes]) -> Moved:
    """Return who has left and who has come, in one pass where it is only the one or the other: a set may have 10,000 members."""
    if old is new:
        return frozenset(), frozenset()
    if len(new) < len(old):
        come, gone = _moved(new, old)
        return gone, come
    come = new - old
    gone = old - new if len(new) - len(come) < len(old) else frozenset()
    return gone, come


def _chain_for(policy: PolicyKey | None, direction: Direction, sides: Mapping[SideKey, Side]) -> str:
    return deny(Reason.NO_RULESET, direction) if policy is None else sides[SideKey(policy, direction)].chain


def _difference(old: Elements, new: Elements) -> tuple[list[Any], list[Any]]:
    """Return the keys that go and the elements that come; a key whose verdict changes does both."""
    if isinstance(new, frozenset):
        held = frozenset(old)
        return list(held - new), [key_of(key) for key in new - held]
    verdicts = old if isinstance(old, Mapping) else {}
    gone = [key for key, chain in verdicts.items() if new.get(key) != chain]
    return gone, [[key_of(key), goto(chain)] for key, chain in new.items() if verdicts.get(key) != chain]


class _Numbers:
    def __init__(self, first: int) -> None:
        self.next = first

    def take(self) -> int:
        self.next += 1
        return self.next - 1
