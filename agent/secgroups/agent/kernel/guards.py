"""Who is guarded in the kernel, as those need it who look at its connections and packets: servers by address, and their rules."""

from __future__ import annotations

from secgroups.agent.effective import EffectiveGroup, effective_groups, effective_ruleset
from secgroups.agent.rule_finder import RuleFinder
from secgroups.agent.ruleset import Ruleset, ServerBinding


class Guards:
    """The servers of ``ruleset``. An address that two of them claim is nobody's: nothing passes to or from it."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset
        # By packed address.
        self.servers: dict[bytes, str] = {}
        self._groups: dict[str, EffectiveGroup] | None = None
        self._finders: dict[frozenset[str], RuleFinder | None] = {}
        shared = set()
        for binding in ruleset.servers.values():
            for address in binding.addresses:
                if self.servers.setdefault(address.packed, binding.server) != binding.server:
                    shared.add(address.packed)
        for packed in shared:
            del self.servers[packed]

    def rules_of(self, server: str) -> RuleFinder | None:
        """Return what finds the rules of a server of ``servers``; None while the rules of one of its groups are not held."""
        binding = self.ruleset.servers[server]
        policy = frozenset(binding.group_ids)
        if policy not in self._finders:
            self._finders[policy] = self._finder(binding)
        return self._finders[policy]

    def _finder(self, binding: ServerBinding) -> RuleFinder | None:
        if self._groups is None:
            self._groups = effective_groups(self.ruleset, {})
        effective = effective_ruleset(binding, self._groups)
        return RuleFinder(effective) if effective.groups is not None else None
