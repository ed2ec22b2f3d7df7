"""Sends packets past their judges: Explain first, then the verdict, and both must be the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from secgroups.agent.flow import Action, Explanation, Packet, Verdict
from secgroups.lab.cases.model import Expectation
from secgroups.lab.cases.traffic import Judge
from secgroups.lab.cases.world import World


class FailedError(Exception):
    """A step did not come to what it must. ``explain`` are the grounds of the verdict, where there is one."""

    def __init__(self, expected: str, got: str, explain: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.explain = explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one server made of a packet."""

    judge: Judge
    packet: Packet
    explanation: Explanation
    verdict: Verdict

    @property
    def allowed(self) -> bool:
        return self.verdict.action is Action.ALLOW

    @property
    def grounds(self) -> str:
        """What Explain says, with the rules that come nearest."""
        return "; ".join([self.explanation.text, *(miss.text for miss in self.explanation.nearest)])

    def __str__(self) -> str:
        rule = f" by rule {self.verdict.rule_id}" if self.verdict.rule_id else ""
        return f"{shown(self.verdict)}{rule} at {self.judge.server.name} ({self.judge.direction.name.lower()})"


def pass_judges(world: World, packet: Packet, judges: Sequence[Judge]) -> Judgement:
    """Return the last judgement made: that of the first who denies, else the last one's. FailedError if Explain says otherwise."""
    for judge in judges:
        judgement = _judge(world, replace(packet, server=str(judge.server), direction=judge.direction), judge)
        if not judgement.allowed:
            break
    return judgement


def _judge(world: World, packet: Packet, judge: Judge) -> Judgement:
    explanation, verdict = world.judge(packet)
    judgement = Judgement(judge=judge, packet=packet, explanation=explanation, verdict=verdict)
    if explanation.verdict != verdict:
        told, happened = _in_full(explanation.verdict), _in_full(verdict)
        raise FailedError(f"what Explain said: {told}", f"{happened} at {judge.server.name}", judgement.grounds)
    return judgement


def check(judgement: Judgement, expected: Expectation, rule_id: str | None) -> None:
    """Raise FailedError if the judgement is not the expected one. ``rule_id`` is that of the rule expected to decide, if one is."""
    verdict = judgement.verdict
    holds = (
        expected.verdict in ("", verdict.action.name.lower())
        and expected.reason in ("", verdict.reason.name)
        and rule_id in (None, verdict.rule_id)
    )
    if not holds:
        raise FailedError(_wanted(expected, rule_id), str(judgement), judgement.grounds)


def _wanted(expected: Expectation, rule_id: str | None) -> str:
    words = [expected.verdict, expected.reason, f"by rule {expected.rule} ({rule_id})" if expected.rule else ""]
    return " ".join(filter(None, words))


def shown(verdict: Verdict) -> str:
    """Return verdict and reason, such as ``deny NO_RULE``."""
    return f"{verdict.action.name.lower()} {verdict.reason.name}"


def _in_full(verdict: Verdict) -> str:
    rule = f" by rule {verdict.rule_id}" if verdict.rule_id else ""
    return f"{shown(verdict)}{rule}{', opening a flow' if verdict.opened else ''}"
