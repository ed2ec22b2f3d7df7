"""The collector looks through what is new, not through all that is in force."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from secgroups.agent.long_lived import OBJECTS_MIN, LongLived


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_held_is_left_out_each_time_that_it_has_doubled() -> None:
    long_lived = LongLived()
    left_out = []
    for objects in (OBJECTS_MIN - 1, OBJECTS_MIN, 2 * OBJECTS_MIN - 1, 2 * OBJECTS_MIN, OBJECTS_MIN):
        before = gc.get_freeze_count()
        fresh = [[] for _ in range(1_000)]
        long_lived.note(objects)
        left_out.append(gc.get_freeze_count() - before >= len(fresh))
        del fresh
    assert left_out == [False, True, False, True, False]
