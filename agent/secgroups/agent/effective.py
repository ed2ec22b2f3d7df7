"""Effective rulesets: the rules that hold for one server, and whether they allow a flow to be opened.

A server's effective ruleset is a value: two are equal if and only if they give every packet the same verdict and rule, as far
as that can be told without comparing what rules cover. It is made from the ruleset in force alone, so the order of changes
can't matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, TCP, Address, Direction, Packet
from secgroups.agent.members import Members
from secgroups.agent.ruleset import AddressSet, GroupRules, Rule, Ruleset, ServerBinding

_NOBODY: Set[Address] = Members()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What rules look at: the packet that opens a flow, seen from the server.

    ``port`` is the destination port, 0 where the protocol has none; ``icmp_type`` and ``icmp_code`` count for ICMP only.
    """

    direction: Direction
    remote: Address
    protocol: int
    port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0

    @classmethod
    def of(cls, packet: Packet) -> Opening:
        """Return ``packet`` as an opening packet."""
        return cls(
            direction=packet.direction,
            remote=packet.remote,
            protocol=packet.protocol,
            port=packet.destination_port if packet.protocol in PROTOCOLS_WITH_PORTS else 0,
            icmp_type=packet.icmp_type,
            icmp_code=packet.icmp_code,
        )

    @classmethod
    def answered_by(cls, packet: Packet) -> Opening:
        """Return the opening packet of the TCP connection in which ``packet`` goes from its answering to its opening end."""
        return cls(direction=packet.direction.opposite, remote=packet.remote, protocol=TCP, port=packet.source_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRule:
    """A rule with the group it came from and, if its remote is a group, the addresses which that stands for now."""

    rule: Rule
    group_id: str
    members: Set[Address] = _NOBODY

    def allows(self, opening: Opening) -> bool:
        """Whether ``opening`` is allowed by this rule."""
        return self.rule.direction is opening.direction and next(self.failures(opening), None) is None

    def failures(self, opening: Opening) -> Iterator[str]:
        """Yield the fields, direction aside, in which ``opening`` is not what the rule allows."""
        rule = self.rule
        is_icmp = opening.protocol in (ICMP, ICMPV6)
        if rule.protocol is not None and rule.protocol != (ICMP if is_icmp else opening.protocol):
            yield "protocol"
        if rule.ports is not None:
            has_ports = opening.protocol in PROTOCOLS_WITH_PORTS
            if not has_ports or not rule.ports[0] <= opening.port <= rule.ports[1]:
                yield "ports"
        if rule.icmp_type is not None and (not is_icmp or rule.icmp_type != opening.icmp_type):
            yield "icmp_type"
        if rule.icmp_code is not None and (not is_icmp or rule.icmp_code != opening.icmp_code):
            yield "icmp_code"
        if not self._covers(opening.remote):
            yield "remote"

    def _covers(self, remote: Address) -> bool:
        wanted = self.rule.remote
        if wanted is None:
            return True
        if isinstance(wanted, str):
            return remote in self.members
        return remote in wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveGroup:
    """A group's effective rules in ascending order of id. What they were made from is not compared."""

    rules: tuple[EffectiveRule, ...]
    source: GroupRules = field(compare=False)
    sets: tuple[AddressSet | None, ...] = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRuleset:
    """All that decides about a server's new flows.

    ``groups`` are those that have rules, None while the rules of one are not held; ``group_names`` are of all it is attached to.
    """

    addresses: frozenset[Address]
    groups: tuple[EffectiveGroup, ...] | None
    group_names: tuple[str, ...] = field(compare=False)

    def rules(self) -> Iterator[EffectiveRule]:
        """Yield every rule, group by group."""
        for group in self.groups or ():
            yield from group.rules

    def find_rule(self, opening: Opening) -> EffectiveRule | None:
        """Return the rule with the lowest id of those that allow ``opening``."""
        return min((rule for rule in self.rules() if rule.allows(opening)), key=lambda found: found.rule.id, default=None)


def effective_groups(ruleset: Ruleset, previous: Mapping[str, EffectiveGroup]) -> dict[str, EffectiveGroup]:
    """Return the effective rules of every group, by its id; those of ``previous`` whose sources are the same objects are kept."""
    result = {}
    for group_id, source in ruleset.groups.items():
        sets = tuple(ruleset.sets.get(rule.remote) for rule in source.rules if isinstance(rule.remote, str))
        held = previous.get(group_id)
        if held is None or held.source is not source or any(a is not b for a, b in zip(held.sets, sets, strict=True)):
            held = EffectiveGroup(rules=_effective_rules(source, ruleset.sets), source=source, sets=sets)
        result[group_id] = held
    return result


def _effective_rules(source: GroupRules, sets: Mapping[str, AddressSet]) -> tuple[EffectiveRule, ...]:
    rules = []
    for rule in sorted(source.rules, key=lambda rule: rule.id):
        members = sets.get(rule.remote) if isinstance(rule.remote, str) else None
        rules.append(EffectiveRule(rule=rule, group_id=source.group_id, members=members.members if members else _NOBODY))
    return tuple(rules)


def effective_ruleset(binding: ServerBinding, groups: Mapping[str, EffectiveGroup]) -> EffectiveRuleset:
    """Return what holds for the server of ``binding``."""
    group_ids = sorted(set(binding.group_ids))
    held = [groups[group_id] for group_id in group_ids if group_id in groups]
    return EffectiveRuleset(
        addresses=binding.addresses,
        groups=tuple(group for group in held if group.rules) if len(held) == len(group_ids) else None,
        group_names=tuple(group.source.name for group in held),
    )
