"""Real packets through a router's namespace, in which the enforcer works; skipped where that can't be."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from netns import World, inside, lacking
from rig import Rig


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
