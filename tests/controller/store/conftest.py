"""Tests of the store: a real SQLite file, and what can befall it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_world import Clock

from secgroups.controller.store.sqlite import SqliteStore


@pytest.fixture
def clock() -> Clock:
    """The time of ``store``."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where ``store`` keeps its file."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "secgroups.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SqliteStore]:
    """A new store that does not wait for the disk."""
    made = SqliteStore(path, clock_us=clock, durable=False)
    yield made
    made.close()
