"""Finds the rule that allows an opening, for many openings of servers with the same rules."""

from __future__ import annotations

from secgroups.agent.effective import EffectiveRule, EffectiveRuleset, Opening

# Kinds of opening (all of it but the remote) for which the rules that come into question are remembered.
KINDS_MAX = 4_096


class RuleFinder:
    """Answers as ``EffectiveRuleset.find_rule`` does.

    It is remembered which rules come into question for all openings that differ in the remote only, of which a server has many.
    ``checks`` counts the rules that were looked at so far: who asks for many can tell when to let others have their turn.
    """

    def __init__(self, ruleset: EffectiveRuleset) -> None:
        self.checks = 0
        self._ruleset = ruleset
        self._rules: dict[str, EffectiveRule] | None = None
        self._by_kind: dict[tuple[int, ...], tuple[EffectiveRule, ...]] = {}

    @property
    def rules(self) -> dict[str, EffectiveRule]:
        """All rules by id, in ascending order of it."""
        if self._rules is None:
            # Not before there is a flow: most servers of a large group have none.
            self._rules = {rule.rule.id: rule for rule in sorted(self._ruleset.rules(), key=lambda each: each.rule.id)}
            self.checks += len(self._rules)
        return self._rules

    def find(self, opening: Opening) -> EffectiveRule | None:
        """Return the rule with the lowest id of those that allow ``opening``."""
        for rule in self._candidates(opening):
            self.checks += 1
            if rule.allows(opening):
                return rule
        return None

    def _candidates(self, opening: Opening) -> tuple[EffectiveRule, ...]:
        kind = (opening.direction, opening.protocol, opening.port, opening.icmp_type, opening.icmp_code)
        found = self._by_kind.get(kind)
        if found is not None:
            return found
        found = tuple(
            rule
            for rule in self.rules.values()
            if rule.rule.direction is opening.direction and all(failed == "remote" for failed in rule.failures(opening))
        )
        self.checks += len(self.rules)
        if len(self._by_kind) < KINDS_MAX:
            self._by_kind[kind] = found
        return found
