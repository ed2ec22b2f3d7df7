"""What is acknowledged stays, whenever the controller is killed: the short run of ``scripts/bench survival``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from _kills import RULES_PER_CALL, Acknowledged, Damage, Found

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

TOLD = Acknowledged(groups={"a", "b"}, bulk={"a"}, servers={"a"}, revision=9)
WHOLE = Found(groups={"a", "b"}, rules=Counter(a=RULES_PER_CALL), servers={"a"}, revision=9)


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (Damage(), WHOLE),
        # What was committed and could not be acknowledged any more.
        (Damage(), replace(WHOLE, groups={"a", "b", "c"}, rules=WHOLE.rules + Counter(b=RULES_PER_CALL), revision=11)),
        (Damage(lost=1), replace(WHOLE, groups={"a"})),
        (Damage(lost=1), replace(WHOLE, rules=Counter())),
        (Damage(lost=1), replace(WHOLE, servers=set())),
        (Damage(half_changes=1), replace(WHOLE, rules=Counter(a=RULES_PER_CALL - 1))),
        (Damage(half_changes=1), replace(WHOLE, rules=WHOLE.rules + Counter(b=1))),
        (Damage(went_back=1), replace(WHOLE, revision=8)),
    ],
    ids=[
        "all is there",
        "more is there",
        "no group",
        "no rules",
        "no server",
        "a rule less",
        "rules of a call by half",
        "an older revision",
    ],
)
def test_damage_is_told_from_what_is_merely_more(expected: Damage, found: Found) -> None:
    damage = Damage()
    damage.note(TOLD, found)
    assert damage == expected


def measured(*arguments: str) -> dict[str, object]:
    command = [sys.executable, str(BENCHMARKS / "survival.py"), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_nothing_acknowledged_is_lost_to_kills_under_writes_and_the_agent_is_in_step_afterwards() -> None:
    found = measured("--only", "kills", "--kills", "10")
    assert found["acknowledged"]
    told = {key: found[key] for key in ("kills", "acknowledged_lost", "half_changes", "revision_went_back", "writers_refused")}
    assert told == {"kills": 10, "acknowledged_lost": 0, "half_changes": 0, "revision_went_back": 0, "writers_refused": {}}
    assert found["agent_converged"]


def test_those_who_behave_see_no_error_beside_one_who_does_not() -> None:
    held = measured("--only", "load", "--seconds", "5", "--agents", "50")["load_held"]
    assert isinstance(held, dict)
    assert held["changes"]
    assert (held["errors"], held["agents_lost"]) == ({}, 0)
