"""How long an agent waits before it connects again."""

from __future__ import annotations

import pytest

from secgroups.agent.backoff import Backoff


def test_the_bound_grows_by_a_quarter_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    asked: list[tuple[float, float]] = []
    backoff = Backoff(0.5, 1.5, lambda low, high: asked.append((low, high)) or high)
    for _ in range(8):
        backoff.next_wait_s()
    backoff.reset()
    backoff.next_wait_s()
    assert asked == [(0, bound_s) for bound_s in (0.5, 0.625, 0.78125, 0.9765625, 1.220703125, 1.5, 1.5, 1.5, 0.5)]


def test_a_bound_is_about_half_of_the_time_that_an_outage_has_lasted() -> None:
    bounds_s: list[float] = []
    backoff = Backoff(0.5, 30, lambda low, high: bounds_s.append(high) or high / 2)
    outage_s = 0.0
    for _ in range(60):
        expected_s = min(30.0, 0.5 + outage_s / 2)
        outage_s += backoff.next_wait_s()
        assert bounds_s[-1] == pytest.approx(expected_s)


def test_after_a_longest_wait_all_are_long_until_there_is_a_success() -> None:
    asked: list[tuple[float, float]] = []
    backoff = Backoff(0.5, 30, lambda low, high: asked.append((low, high)) or high)
    for wait in (backoff.longest_wait_s, backoff.next_wait_s, backoff.longest_wait_s):
        wait()
    backoff.reset()
    backoff.next_wait_s()
    assert asked == [(15, 30), (0, 30), (15, 30), (0, 0.5)]
