"""Seeds of the simulator, one test each; that a seed is a function of its number; and that the checks catch what they are for.

The seeds run in a process of their own, whose randomness, clock and event loop are the simulation's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIMULATE = Path(__file__).with_name("simulate.py")
SEEDS = range(1, 201)
# What a seed can meet; see ``plan.FAULTS``. Each must have been met by one of the seeds, or they show less than they say.
FAULTS = [
    *("reset", "reset_in_flight", "partition", "one_way_partition", "refuse", "slow_link", "stuck_reader", "twin", "new_host"),
    *("controller_pause", "controller_kill", "controller_restart", "agent_kill", "agent_restart", "damage", "disk_full"),
    *("store_fails", "restore", "clock_jump"),
]
# How streams began, with why they did not begin better.
BEGINNINGS = [
    "resumed",
    "difference what changed since revision N is not in memory",
    "snapshot the agent holds nothing that it trusts",
    "snapshot it is ahead of the store: at revision N of N",
    "snapshot revision N of timeline N is not in the past of this store",
    "snapshot the change log begins after revision N, it is at N",
]
OCCURRENCES = [
    *(f"fault {name}" for name in FAULTS),
    *(f"welcome {beginning}" for beginning in BEGINNINGS),
    *(f"cache {how}" for how in ("torn", "flipped", "missing", "leftover")),
    *("controller killed", "controller stopped", "reset in flight", "start from cache", "store_failed", "change_in_doubt"),
    *("disk full", "disk broken", "held back", "parts of a step", "preview counted", "preview not counted"),
    *("acknowledged", "in_force", "not_in_force", "patches", "removals", "rejections"),
    *(f"packet {reason}" for reason in ("new", "established", "revoked", "no_rule")),
    *(f"refused {code}" for code in ("ALREADY_EXISTS", "FAILED_PRECONDITION", "NOT_FOUND", "UNAVAILABLE")),
]
# By name: the check that has to catch it. See ``planted``.
PLANTED = {
    "removals are lost": "enforces",
    "a patch loses an address": "enforces",
    "a patch is made for another base": "enforces",
    "a snapshot forgets a server": "enforces",
    "another one's server is sent": "span",
    "moves are not waited for": "span",
    "updates are acknowledged for the agent": "in_force",
    "a deleted rule stays": "flows",
    "commits vanish": "lost",
    "tasks are left over": "bounds",
    "one agent is never answered": "converge",
}


class Simulator:
    """A process that runs seeds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SIMULATE), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers: dict[tuple[int, str], dict[str, Any]] = {}

    def run(self, seed: int, planted: str = "") -> dict[str, Any]:
        """Return what comes of a seed; what came of it, if it was run before."""
        if (seed, planted) not in self._answers:
            self._answers[seed, planted] = self.run_again(seed, planted)
        return self._answers[seed, planted]

    def run_again(self, seed: int, planted: str = "") -> dict[str, Any]:
        """Run a seed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(f"{seed} {planted}".strip(), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the simulator died of seed {seed}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    yield simulator
    simulator.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_goes_wrong_in_the_world_of_a_seed(simulator: Simulator, seed: int) -> None:
    answer = simulator.run(seed)
    assert not answer["failed"], f"{answer['failed']}\nto see it again: scripts/test --simulate {seed} --show"


@pytest.mark.parametrize("occurrence", OCCURRENCES)
def test_the_seeds_meet_every_fault_and_every_way_to_go_on(simulator: Simulator, occurrence: str) -> None:
    counts: Counter[str] = Counter()
    for seed in SEEDS:
        counts.update(simulator.run(seed)["counts"])
    assert counts[occurrence] > 0, counts


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_seed_is_the_same_world_in_another_process_and_after_other_seeds(simulator: Simulator, seed: int) -> None:
    alone = subprocess.run([sys.executable, str(SIMULATE), str(seed)], capture_output=True, text=True, check=True).stdout
    simulator.run(SEEDS[-1])
    again = simulator.run_again(seed)
    assert alone.split()[-1] == simulator.run(seed)["hash"] == again["hash"]


@pytest.mark.parametrize(("planted", "check"), PLANTED.items())
def test_a_bug_is_caught_by_the_check_that_is_made_for_it(simulator: Simulator, planted: str, check: str) -> None:
    found: list[str] = []
    for seed in SEEDS[:20]:
        answer = simulator.run(seed, planted)
        found.append(answer["check"])
        if answer["check"] == check and answer["counts"].get("planted"):
            return
    pytest.fail(f"in {len(found)} seeds {planted} was caught by {found}, never by {check}")
