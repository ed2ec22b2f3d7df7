"""The engine's tests once more, on a build that checks every access to memory and all arithmetic (scripts/build_checked)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What asks the engine; the long ones of test_properties are left out.
TESTS = (
    "apply bounds decide_many differential explain figures flow_file flow_file_damage flows found_by_lives fragments full_table "
    "hammer live long_life related restart revocation rule_lives rules rules_in_bulk screening tap tcp"
)
BUILD_LIMIT_S, RUN_LIMIT_S = 300, 600


def _find_sanitizer() -> str:
    """Return the run-time library of the sanitizer, empty if the compiler has none."""
    try:
        told = subprocess.run([os.environ.get("CC", "gcc"), "-print-file-name=libasan.so"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""
    # It tells a bare name of what it does not have.
    return told.strip() if os.path.isabs(told.strip()) else ""


@pytest.fixture(scope="module")
def checked_environment() -> dict[str, str]:
    """What a process needs that is to load the checked build."""
    sanitizer = _find_sanitizer()
    if not sanitizer:
        pytest.skip("the compiler has no libasan")
    built = subprocess.run([ROOT / "scripts" / "build_checked"], capture_output=True, text=True, timeout=BUILD_LIMIT_S)
    assert built.returncode == 0, built.stderr[-4_000:]
    # The interpreter itself leaves memory to the end of the process. Python's own buffers come from malloc, to be watched as well.
    return os.environ | {
        "SECGROUPS_CHECKED_ENGINE": built.stdout.strip(),
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S
    )


def test_the_checked_build_sees_a_step_past_the_end(checked_environment):
    # The table of endpoints begins with room for 16; that a number is in use is the caller's to know.
    ran = _run(
        checked_environment,
        "-c",
        "import sys; sys.path[:0] = ['tests', 'tests/agent']\n"
        "import conftest\n"
        "from agent_world import World\n"
        "from secgroups.agent import _engine\n"
        "assert _engine.CHECKED\n"
        "core = World('compiled').firewall.flows.core\n"
        "print('within', core.endpoint_server(15), flush=True)\n"
        "core.endpoint_server(16)\n",
    )
    assert ran.returncode != 0
    assert ran.stdout.startswith("within")
    assert "heap-buffer-overflow" in ran.stderr


def test_the_tests_of_the_engine_step_nowhere_past_an_end(checked_environment):
    files = [f"tests/agent/test_{name}.py" for name in TESTS.split()]
    ran = _run(checked_environment, "-m", "pytest", "-q", "-x", "-k", "not reference", "-p", "no:cacheprovider", *files)
    assert ran.returncode == 0, f"{ran.stdout[-6_000:]}\n{ran.stderr[-6_000:]}"


def test_an_engine_that_ran_out_of_memory_half_way_can_be_asked_and_let_go(checked_environment):
    """What takes more than a megabyte at once gets nothing."""
    told = _run(
        checked_environment | {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1"},
        "-c",
        "import sys; sys.path[:0] = ['tests/agent']\n"
        "import starved_child as child\n"
        "from secgroups.agent.errors import EngineBrokenError\n"
        "from secgroups.agent.ruleset import RulesetUpdate\n"
        "from secgroups.agent.convert import ruleset_update\n"
        "firewall = child.Firewall(child.EngineSettings(flows_max=1_024), now_ns=0)\n"
        "whole = {name: tuple(getattr(child.GOOD, name).values()) for name in ('groups', 'servers')}\n"
        "firewall.apply(RulesetUpdate(revision=1, snapshot=True, **whole), 0)\n"
        "reasons = [firewall.decide(child.asked(22), 1).reason.name]\n"
        "try:\n"
        "    firewall.apply(ruleset_update(child.bigger_update()), 1)\n"
        "except EngineBrokenError:\n"
        "    reasons += [firewall.decide(child.asked(port), 2).reason.name for port in (22, 80)]\n"
        "print(*reasons, len(list(firewall.live(2))), firewall.stats(2).flows)\n"
        "del firewall\n",
    )
    assert (told.returncode, told.stdout.split()) == (0, ["NEW", "NO_RULESET", "NO_RULESET", "1", "1"]), told.stderr[-2_000:]
