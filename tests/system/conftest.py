"""Whole systems: a controller and agents as processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# The kills of scripts/bench survival.
sys.path.insert(1, str(Path(__file__).parents[1] / "benchmarks"))

from running_system import System


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., System]]:
    """Start a controller and the agents that are named; they speak and reconnect often, and are stopped with the module."""
    started: list[System] = []

    def start(*agent_ids: str) -> System:
        made = System(tmp_path_factory.mktemp("system"), agent_ids)
        started.append(made)
        made.start()
        return made

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SECGROUPS_CONTROLLER_HEARTBEAT_S", "0.5")
        environment.setenv("SECGROUPS_AGENT_RECONNECT_MIN_S", "0.05")
        environment.setenv("SECGROUPS_AGENT_RECONNECT_MAX_S", "0.2")
        yield start
    for each in started:
        each.stop()
