"""Tests of what agents are told: real store, state and publisher, and the agent's own replica, without sockets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stream_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fresh controller."""
    made = World(tmp_path / "secgroups.db")
    yield made
    made.close()
