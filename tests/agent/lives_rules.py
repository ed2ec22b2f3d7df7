"""Random rulesets and random changes of them, sensible and senseless ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from random import Random

from lives_packets import OWN, PORTS, SERVERS, some_remotes

from secgroups.agent.flow import ICMP, SCTP, TCP, UDP, Address, Direction
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Network, Rule, Ruleset, RulesetUpdate, ServerBinding

GROUPS = ("g0", "g1", "g2", "g3", "g4")
_LENGTHS = {4: (0, 1, 8, 15, 16, 17, 20, 23, 24, 25, 28, 30, 31, 32), 6: (0, 1, 8, 32, 48, 63, 64, 65, 96, 112, 127, 128)}
_RULES_MAX = 8


class Changes:
    """Makes updates that fit what is in force, but for some that name a wrong version."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._revision = self._version = 0
        self._remotes = some_remotes()

    def beginning(self) -> RulesetUpdate:
        """Return the first snapshot."""
        return RulesetUpdate(
            revision=self._next_revision(),
            snapshot=True,
            sets=tuple(self._set(group_id) for group_id in GROUPS if self._rng.random() < 0.7),
            groups=tuple(self._group(group_id) for group_id in GROUPS),
            servers=tuple(self._binding(server) for server in SERVERS),
        )

    def whole(self, held: Ruleset) -> RulesetUpdate:
        """Return a snapshot of what is held; sometimes something is missing or changed."""
        rng = self._rng
        sets, groups, servers = dict(held.sets), dict(held.groups), dict(held.servers)
        if rng.random() < 0.4:
            for objects in rng.sample([sets, groups, servers], rng.randint(1, 2)):
                if objects:
                    del objects[rng.choice(sorted(objects))]
        if rng.random() < 0.3:
            group_id = rng.choice(GROUPS)
            groups[group_id] = self._changed(groups.get(group_id), group_id)
        return RulesetUpdate(
            revision=self._next_revision(),
            snapshot=True,
            sets=tuple(sets.values()),
            groups=tuple(groups.values()),
            servers=tuple(servers.values()),
        )

    def part_of(self, held: Ruleset) -> RulesetUpdate:
        """Return an update that is no snapshot and mentions a part of what was held."""
        whole = self.whole(held)
        return replace(whole, snapshot=False, servers=tuple(each for each in whole.servers if self._rng.random() < 0.7))

    def next(self, held: Ruleset) -> RulesetUpdate:
        """Return a change, or several in one."""
        if self._rng.random() < 0.02:
            return self.whole(held)
        update = RulesetUpdate(revision=self._next_revision())
        for _ in range(self._rng.choice([1, 1, 1, 2, 5])):
            update = self._one_more(update, held)
        return update

    def _one_more(self, update: RulesetUpdate, held: Ruleset) -> RulesetUpdate:
        rng = self._rng
        group_id, server = rng.choice(GROUPS), rng.choice(SERVERS)
        # What is missing comes back soon: without it, little happens.
        if rng.random() < 0.7:
            group_id = next((each for each in GROUPS if each not in held.groups), group_id)
            server = next((each for each in SERVERS if each not in held.servers), server)
        kinds: list[tuple[float, Callable[[], RulesetUpdate]]] = [
            (10, lambda: replace(update, groups=(*update.groups, self._changed(held.groups.get(group_id), group_id)))),
            (3, lambda: replace(update, sets=(*update.sets, self._set(group_id)))),
            (5, lambda: replace(update, set_patches=(*update.set_patches, self._patch(group_id, held)))),
            (5, lambda: replace(update, servers=(*update.servers, self._rebound(server, held)))),
            (0.5, lambda: replace(update, removed_servers=(*update.removed_servers, server))),
            (0.2, lambda: replace(update, removed_groups=(*update.removed_groups, group_id))),
            (0.6, lambda: replace(update, removed_sets=(*update.removed_sets, group_id))),
        ]
        (chosen,) = rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        return chosen()

    def _changed(self, group: GroupRules | None, group_id: str) -> GroupRules:
        rng = self._rng
        if group is None or rng.random() < 0.1:
            return self._group(group_id)
        rules = {rule.id: rule for rule in group.rules}
        name = group.name
        what = rng.choice(["add", "add", "remove", "remove", "content", "swap", "swap", "name", "many"])
        if what in ("remove", "content", "swap") and rules:
            gone = rng.choice(sorted(rules))
            del rules[gone]
            if what == "content":
                rules[gone] = replace(self._rule(group_id), id=gone)
        if what in ("add", "swap", "many"):
            for _ in range(rng.randint(5, 30) if what == "many" else 1):
                made = self._rule(group_id)
                rules[made.id] = made
        if what == "name":
            name = f"{group_id} renamed {self._revision}"
        listed = list(rules.values())
        rng.shuffle(listed)
        return GroupRules(group_id=group_id, version=self._revision, name=name, rules=tuple(listed[:40]))

    def _group(self, group_id: str) -> GroupRules:
        rules = [self._rule(group_id) for _ in range(self._rng.randint(0, _RULES_MAX))]
        distinct = tuple({rule.id: rule for rule in rules}.values())
        return GroupRules(group_id=group_id, version=self._revision, name=group_id, rules=distinct)

    def _rule(self, group_id: str) -> Rule:
        rng = self._rng
        protocol = rng.choice([None, None, None, None, TCP, TCP, TCP, TCP, UDP, UDP, ICMP, ICMP, SCTP, rng.choice([0, 2, 47, 255])])
        ports = icmp_type = icmp_code = None
        if protocol in (TCP, UDP, SCTP) and rng.random() < 0.6:
            known = [port for port in PORTS if port] + [rng.randint(1, 65_535)]
            first, last = sorted((rng.choice(known), rng.choice(known)))
            ports = (first, first if rng.random() < 0.4 else last)
        if protocol == ICMP and rng.random() < 0.7:
            icmp_type = rng.choice([0, 3, 8, 9, 11, 13, 128, 129, 134, 139, 255])
            icmp_code = rng.choice([None, None, 0, 1, 255])
        return Rule(
            id=f"r{rng.randint(0, 40):02}-{group_id}",
            direction=rng.choice([Direction.INGRESS, Direction.EGRESS]),
            protocol=protocol,
            ports=ports,
            icmp_type=icmp_type,
            icmp_code=icmp_code,
            remote=self._remote(),
        )

    def _remote(self) -> Network | str | None:
        rng = self._rng
        chance = rng.random()
        if chance < 0.3:
            return None
        if chance < 0.5:
            return rng.choice(GROUPS)
        base = rng.choice(self._remotes)
        longest = 32 if base.version == 4 else 128
        length = rng.choice(_LENGTHS[base.version]) if rng.random() < 0.9 else rng.randint(0, longest)
        return ip_network((int(base) if base.version == 4 else base.packed, length), strict=False)

    def _members(self) -> frozenset[Address]:
        rng = self._rng
        members: set[Address] = set(rng.sample(self._remotes, rng.randint(0, min(8, len(self._remotes)))))
        if rng.random() < 0.05:
            members |= {IPv4Address(0x0A00_0000 + rng.randrange(1 << 17)) for _ in range(300)}
        return frozenset(members)

    def _set(self, group_id: str) -> AddressSet:
        return AddressSet(group_id=group_id, version=self._next_version(), members=self._members())

    def _patch(self, group_id: str, held: Ruleset) -> AddressSetPatch:
        rng = self._rng
        base = held.sets[group_id].version if group_id in held.sets else 0
        if rng.random() < 0.05:
            base += 1
        members = sorted(held.sets[group_id].members, key=str) if group_id in held.sets else []
        removed = set(rng.sample(members, min(len(members), rng.randint(0, 3))))
        if rng.random() < 0.2:
            removed |= self._members()
        added = frozenset(rng.sample(self._remotes, rng.randint(0, 3)))
        return AddressSetPatch(
            group_id=group_id, base_version=base, version=self._next_version(), added=added, removed=frozenset(removed)
        )

    def _binding(self, server: str) -> ServerBinding:
        rng = self._rng
        addresses = rng.sample(OWN, rng.randint(1, 5)) if rng.random() < 0.98 else []
        return ServerBinding(server=server, version=self._revision, addresses=frozenset(addresses), group_ids=self._some_groups())

    def _rebound(self, server: str, held: Ruleset) -> ServerBinding:
        rng, old = self._rng, held.servers.get(server)
        if old is None or rng.random() < 0.2:
            return self._binding(server)
        if rng.random() < 0.5:
            return replace(old, version=self._revision, group_ids=self._some_groups())
        addresses = set(old.addresses) ^ set(rng.sample(OWN, rng.randint(0, 2)))
        return replace(old, version=self._revision, addresses=frozenset(addresses))

    def _some_groups(self) -> tuple[str, ...]:
        chosen = self._rng.sample(GROUPS, self._rng.choice([1, 1, 2, 3]))
        return (*chosen, "not-held") if self._rng.random() < 0.01 else tuple(chosen)

    def _next_revision(self) -> int:
        self._revision += 1
        return self._revision

    def _next_version(self) -> int:
        # Every set has another version, in one update as well.
        self._version += 1
        return self._version
