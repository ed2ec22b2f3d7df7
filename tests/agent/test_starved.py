"""An agent that runs out of memory in the middle of an update answers by no half of it, saves no half of it, and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secgroups.agent._engine import CHECKED

TIMEOUT_S = 120
OLD = {"verdicts": ["NEW", "NO_RULE"], "revision": 1, "rules": ["ssh"]}
NEW = {"verdicts": ["NO_RULE", "NEW"], "revision": 2, "rules": ["http"]}
# What is saved is what was good before.
BROKEN = OLD | {"verdicts": ["NO_RULESET", "NO_RULESET"], "saved": "nothing", "later": ["EngineBrokenError"] * 2}
# What has failed before anything was changed, or not at all.
WHOLE = {"MemoryError": OLD, "": NEW}


@pytest.mark.skipif(CHECKED, reason="what watches memory takes all the addresses that there are")
def test_where_memory_runs_out_the_old_rules_hold_or_all_is_denied_and_the_last_good_state_is_kept(tmp_path: Path) -> None:
    outcomes = starved(tmp_path)
    for told in outcomes:
        expected = WHOLE.get(told["raised"], BROKEN)
        assert {name: told[name] for name in expected} == expected
    raised = [told["raised"] for told in outcomes]
    assert raised[-1] == ""
    assert raised.count("EngineBrokenError") > 1


def starved(folder: Path) -> list[dict[str, Any]]:
    """Return what came of an update with ever more memory, at last with enough."""
    child = Path(__file__).with_name("starved_child.py")
    # With one arena, what is left of the limit is all that there is to be had.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, child, folder], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]
