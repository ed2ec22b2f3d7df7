"""What an update would cut, told without applying it: the flows that pass now and would not pass any more.

A flow is cut if it is live, the rules in force allow it (so not one that is revoked, or that would be at its next packet), and
after the update they would not, or its server or its address would be gone. For any engine: it works from the ruleset in force
and from flows, wherever these are kept.

    cut = prospect(ruleset, update)              # which servers are touched, and what would hold for them
    counting_cut(cut, flows of cut.servers)      # the count, in slices of bounded work
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from secgroups.agent.effective import EffectiveGroup, EffectiveRuleset, effective_groups, effective_ruleset
from secgroups.agent.rule_finder import RuleFinder
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.tracking import Flow

# Rules that are checked between two breaths of whoever counts: two or three milliseconds in plain Python.
CHECKS_PER_SLICE = 2_000


class Fate:
    """What holds for one server now and what would; ``then`` is None if it would be gone. ``checks`` counts rules looked at."""

    def __init__(self, now: EffectiveRuleset, then: EffectiveRuleset | None) -> None:
        self.checks = 0
        self._addresses = then.addresses if then else frozenset()
        self._now = _Allowing(now)
        self._then = _Allowing(then) if then else None

    def cuts(self, flow: Flow) -> bool:
        """Whether ``flow``, which is live, is allowed now and would not be."""
        if flow.revoked:
            return False
        kept = self._then is not None and flow.key.local in self._addresses and self._allows(self._then, flow)
        return not kept and self._allows(self._now, flow)

    def _allows(self, rules: _Allowing, flow: Flow) -> bool:
        allowed, checks = rules.judge(flow)
        self.checks += checks
        return allowed


class _Allowing:
    """Tells of many flows whether a ruleset allows them. The rule that last did is asked first: nearly always it does."""

    def __init__(self, ruleset: EffectiveRuleset) -> None:
        self._finder = RuleFinder(ruleset)

    def judge(self, flow: Flow) -> tuple[bool, int]:
        """Return whether ``flow`` is allowed, and how many rules were looked at."""
        checks_before = self._finder.checks
        rule = self._finder.rules.get(flow.rule_id)
        allowed = rule is not None and rule.allows(flow.opening)
        if not allowed:
            allowed = self._finder.find(flow.opening) is not None
        return allowed, 1 + self._finder.checks - checks_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What would become of the servers that an update touches; of no other server is a flow cut."""

    fates: Mapping[str, Fate]

    @property
    def servers(self) -> Collection[str]:
        """The servers touched, as ``project/id``."""
        return self.fates.keys()


def prospect(ruleset: Ruleset, update: RulesetUpdate) -> Prospect:
    """Return what ``update`` would do to the servers of ``ruleset``. Raises ``BaseVersionError``.

    Takes time in proportion to the objects held, and to the rules of the servers that may be touched.
    """
    after = ruleset.apply(update)
    changed = _changed_groups(ruleset, after)
    candidates = [
        server
        for server, binding in ruleset.servers.items()
        if after.servers.get(server) is not binding or not changed.isdisjoint(binding.group_ids)
    ]
    bindings = [binding for side in (ruleset, after) for server in candidates if (binding := side.servers.get(server))]
    group_ids = {group_id for binding in bindings for group_id in binding.group_ids}
    groups_now = _effective(ruleset, group_ids, {})
    groups_then = {
        # Equal ones become the same object, so that comparing servers does not compare their rules one by one.
        group_id: groups_now[group_id] if groups_now.get(group_id) == made else made
        for group_id, made in _effective(after, group_ids, groups_now).items()
    }
    fates = {}
    for server in candidates:
        binding = after.servers.get(server)
        now = effective_ruleset(ruleset.servers[server], groups_now)
        then = effective_ruleset(binding, groups_then) if binding else None
        if now != then:
            fates[server] = Fate(now, then)
    return Prospect(fates=fates)


def _changed_groups(before: Ruleset, after: Ruleset) -> set[str]:
    """Return the groups whose rules, or the sets that these name, are not the objects they were."""
    sets = {name for name in before.sets.keys() | after.sets.keys() if before.sets.get(name) is not after.sets.get(name)}
    changed = {name for name in before.groups.keys() | after.groups.keys() if before.groups.get(name) is not after.groups.get(name)}
    changed.update(name for name, group in after.groups.items() if any(rule.remote in sets for rule in group.rules))
    return changed


def _effective(ruleset: Ruleset, group_ids: Iterable[str], previous: Mapping[str, EffectiveGroup]) -> dict[str, EffectiveGroup]:
    held = {group_id: ruleset.groups[group_id] for group_id in group_ids if group_id in ruleset.groups}
    return effective_groups(Ruleset(sets=ruleset.sets, groups=held), previous)


def counting_cut(cut: Prospect, flows: Iterable[Flow]) -> Iterator[int]:
    """Yield how many of ``flows`` were found cut so far, after each slice of work; the last one is the answer.

    ``flows`` are the live ones of ``cut.servers``, each once. They may be looked up as the count goes on: it then tells of a table
    in motion, as any later count would.
    """
    found = checks = 0
    for flow in flows:
        fate = cut.fates[flow.key.server]
        checks_before = fate.checks
        found += fate.cuts(flow)
        checks += 1 + fate.checks - checks_before
        if checks >= CHECKS_PER_SLICE:
            checks = 0
            yield found
    yield found
