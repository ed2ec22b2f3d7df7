"""What an engine has done since its start, in numbers: a bounded set of them, since the counters of a rule go with the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secgroups.agent.flow import Action, Packet, Reason, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCount:
    """What a rule has let through: packets and bytes, those of its flows included, and flows opened."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of an engine at one moment.

    ``flows_by_state`` counts live flows by the name of their state (``REVOKED`` is one); ``entries`` is what the table holds,
    flows that are over but not yet cleared away included. ``verdicts`` count since the engine started. ``evicted_*`` are live flows
    that had to make room, ``expired`` dead ones cleared away for it.
    """

    revision: int
    servers: int
    groups: int
    sets: int
    flows: int
    flows_by_state: Mapping[str, int]
    entries: int
    flows_max: int
    server_flows_max: int
    fragments: int
    fragments_max: int
    verdicts: Mapping[Reason, int]
    evicted_unanswered: int
    evicted_answered: int
    expired: int

    @property
    def evicted(self) -> int:
        return self.evicted_unanswered + self.evicted_answered


class Counters:
    """Counts verdicts by reason and by rule."""

    def __init__(self) -> None:
        self.verdicts: dict[Reason, int] = {}
        self.rules: dict[str, RuleCount] = {}
        self.evicted_unanswered = 0
        self.evicted_answered = 0
        self.expired = 0

    def count(self, packet: Packet, verdict: Verdict) -> None:
        """Count a verdict that was given. A denial may name a rule that is gone, so only what is allowed counts for its rule."""
        self.verdicts[verdict.reason] = self.verdicts.get(verdict.reason, 0) + 1
        if verdict.rule_id and verdict.action is Action.ALLOW:
            held = self.rules.get(verdict.rule_id, RuleCount())
            self.rules[verdict.rule_id] = RuleCount(
                packets=held.packets + 1,
                bytes=held.bytes + packet.length,
                flows=held.flows + verdict.opened,
            )

    def forget(self, rule_ids: Iterable[str]) -> None:
        """Drop the counters of rules that are gone."""
        for rule_id in rule_ids:
            self.rules.pop(rule_id, None)
