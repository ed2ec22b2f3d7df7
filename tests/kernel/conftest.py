"""Real packets through a router's namespace, in which the enforcer works; skipped where that can't be."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from enforcing import enforcing_system
from netns import World, inside, lacking
from rig import Rig
from running_system import System


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if why := lacking():
        pytest.skip(why)
    made = World()
    try:
        made.silence(True)
        with inside(made.router):
            yield made
    finally:
        made.close()


@pytest.fixture
async def rig(world: World) -> AsyncIterator[Rig]:
    """An enforcer in the router, not started; removed with all its traces."""
    made = Rig(world)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def system(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """A controller and an agent that enforces, as processes in the router."""
    monkeypatch.setenv("SECGROUPS_CONTROLLER_HEARTBEAT_S", "0.5")
    monkeypatch.setenv("SECGROUPS_AGENT_RECONNECT_MIN_S", "0.05")
    monkeypatch.setenv("SECGROUPS_AGENT_RECONNECT_MAX_S", "0.2")
    monkeypatch.setenv("SECGROUPS_AGENT_ENFORCE", "nftables")
    with enforcing_system(world, tmp_path) as made:
        yield made
