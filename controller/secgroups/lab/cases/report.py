"""Outcomes as lines: for people one per failed or skipped case and a summary, or one JSON object per case."""

from __future__ import annotations

import json

from secgroups.lab.cases.runner import Outcome

# A stack trace is for --json; a line shows its end.
_EXPLAIN_CHARACTERS_MAX = 600


def json_line(outcome: Outcome) -> str:
    """Return one case as one line of JSON."""
    return json.dumps(outcome.as_json(), ensure_ascii=False)


def human_line(outcome: Outcome) -> str:
    """Return what a person needs to know of a case, empty if it passed."""
    case = outcome.case
    place = f"{case.file}:{case.line}: {case.name}"
    if outcome.skipped:
        return f"SKIP {place}: {outcome.skipped}"
    if outcome.ok:
        return ""
    explain = " ".join(outcome.explain.split())[-_EXPLAIN_CHARACTERS_MAX:]
    grounds = f" ({explain})" if explain else ""
    return f"FAIL {place}: {_step_text(outcome)}: expected {outcome.expected}, got {outcome.got}{grounds}"


def _step_text(outcome: Outcome) -> str:
    if not outcome.failed_step:
        return "setup"
    step = outcome.case.steps[outcome.failed_step - 1]
    note = f", {step.note}" if step.note else ""
    return f"step {step.number} ({step.verb}, line {step.line}{note})"


def summary(outcomes: list[Outcome], seconds: float, where: str) -> str:
    """Return counts and time, such as ``3 cases: 2 passed, 1 failed in 0.1 s (engine reference, in process)``."""
    skipped = sum(bool(outcome.skipped) for outcome in outcomes)
    passed = sum(outcome.ok for outcome in outcomes)
    counts = [f"{passed} passed", f"{len(outcomes) - passed - skipped} failed"]
    if skipped:
        counts.append(f"{skipped} skipped")
    cases = "1 case" if len(outcomes) == 1 else f"{len(outcomes)} cases"
    return f"{cases}: {', '.join(counts)} in {seconds:.1f} s ({where})"
