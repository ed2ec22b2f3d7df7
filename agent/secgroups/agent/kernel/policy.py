"""What a ruleset asks of the kernel, as values: who is guarded by which policy, what each policy allows, who the members are.

A **policy** is a distinct set of groups, as in the compiled engine; servers share it. Its two sides, egress and ingress, are
judged apart: a connection between two servers of one host is judged by the egress side of the one and the ingress side of the
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import is_

from secgroups.agent.flow import Address, Direction
from secgroups.agent.kernel.boxes import NetworkBox, PortBox, network_boxes, port_boxes
from secgroups.agent.ruleset import GroupRules, Network, Rule, Ruleset, ServerBinding

VERSIONS = (4, 6)

PolicyKey = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SideKey:
    """One side of a policy: the ids of its groups, sorted, and the direction of the rules."""

    policy: PolicyKey
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRules:
    """What one side of a policy allows in one IP version; ``members`` is by the id of the remote group."""

    anywhere: tuple[PortBox, ...]
    networks: tuple[NetworkBox, ...]
    members: tuple[tuple[str, tuple[PortBox, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRules:
    """What one side of a policy allows. Equal ones give every opening packet the same verdict and rule, members aside."""

    ipv4: FamilyRules
    ipv6: FamilyRules

    def family(self, version: int) -> FamilyRules:
        return self.ipv4 if version == 4 else self.ipv6

    def remote_groups(self) -> frozenset[str]:
        """Return the groups whose members are asked for."""
        return frozenset(group_id for rules in (self.ipv4, self.ipv6) for group_id, _ in rules.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """All that is to be in force. ``guarded`` gives the policy of each address, None for one that nothing may pass.

    That is so while the rules of its server are not held, and for an address in ``shared``: two servers of this host claim it, and
    nothing tells them apart. ``servers`` gives the addresses of each, ``members`` those that each remote group stands for, packed.
    """

    revision: int = 0
    guarded: Mapping[Address, PolicyKey | None] = field(default_factory=dict)
    shared: frozenset[Address] = frozenset()
    servers: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    sides: Mapping[SideKey, SideRules] = field(default_factory=dict)
    members: Mapping[str, frozenset[bytes]] = field(default_factory=dict)


# ``guarded``, ``shared`` and ``servers`` of a target.
Guarded = tuple[Mapping[Address, PolicyKey | None], frozenset[Address], Mapping[str, frozenset[Address]]]


class Compiler:
    """Makes targets; what did not change since the last one is not worked out again."""

    def __init__(self) -> None:
        self._sides: dict[PolicyKey, tuple[tuple[GroupRules, ...], dict[SideKey, SideRules]]] = {}
        self._made_of: tuple[tuple[ServerBinding, ...], frozenset[str], Guarded] | None = None

    def target(self, ruleset: Ruleset) -> Target:
        """Return what ``ruleset`` asks for. What is guarded is the same object as before if it is the same."""
        guarded, shared, servers = self._guarded(ruleset)
        sides: dict[SideKey, SideRules] = {}
        compiled = {}
        for policy in {policy for policy in guarded.values() if policy is not None}:
            compiled[policy] = self._compiled(policy, tuple(ruleset.groups[group_id] for group_id in policy))
            sides |= compiled[policy][1]
        self._sides = compiled
        remotes = {group_id for rules in sides.values() for group_id in rules.remote_groups()}
        return Target(
            revision=ruleset.revision,
            guarded=guarded,
            shared=shared,
            servers=servers,
            sides=sides,
            members={group_id: ruleset.sets[group_id].packed if group_id in ruleset.sets else frozenset() for group_id in remotes},
        )

    def _guarded(self, ruleset: Ruleset) -> Guarded:
        bindings, groups = tuple(ruleset.servers.values()), ruleset.groups.keys()
        if self._made_of is not None:
            same_bindings, same_groups, made = self._made_of
            if same_groups == groups and len(same_bindings) == len(bindings) and all(map(is_, same_bindings, bindings)):
                return made
        guarded: dict[Address, PolicyKey | None] = {}
        shared: set[Address] = set()
        for binding in bindings:
            policy = tuple(sorted(set(binding.group_ids)))
            held = policy if all(group_id in groups for group_id in policy) else None
            for address in binding.addresses:
                if address in guarded:
                    shared.add(address)
                guarded[address] = held
        guarded.update((address, None) for address in shared)
        made = guarded, frozenset(shared), {binding.server: binding.addresses for binding in bindings}
        self._made_of = bindings, frozenset(groups), made
        return made

    def _compiled(
        self, policy: PolicyKey, groups: tuple[GroupRules, ...]
    ) -> tuple[tuple[GroupRules, ...], dict[SideKey, SideRules]]:
        held = self._sides.get(policy)
        if held is not None and all(old is new for old, new in zip(held[0], groups, strict=True)):
            return held
        rules = [rule for group in groups for rule in group.rules]
        sides = {
            SideKey(policy, direction): SideRules(
                ipv4=family_rules([rule for rule in rules if rule.direction is direction], 4),
                ipv6=family_rules([rule for rule in rules if rule.direction is direction], 6),
            )
            for direction in Direction
        }
        return groups, sides


def family_rules(rules: list[Rule], version: int) -> FamilyRules:
    """Return what ``rules``, all of one direction, allow in IP ``version``."""
    anywhere = []
    networks: list[tuple[Network, Rule]] = []
    members: dict[str, list[Rule]] = {}
    for rule in rules:
        if isinstance(rule.remote, str):
            members.setdefault(rule.remote, []).append(rule)
        elif rule.remote is None or (rule.remote.version == version and rule.remote.prefixlen == 0):
            anywhere.append(rule)
        elif rule.remote.version == version:
            networks.append((rule.remote, rule))
    return FamilyRules(
        anywhere=port_boxes(anywhere, version),
        networks=network_boxes(networks, version),
        members=tuple((group_id, port_boxes(members[group_id], version)) for group_id in sorted(members)),
    )


def of_version(addresses: frozenset[Address], version: int) -> Iterator[Address]:
    """Yield those of one IP version."""
    return (address for address in addresses if address.version == version)
