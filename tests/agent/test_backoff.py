"""How long an agent waits before it connects again."""

from __future__ import annotations

from secgroups.agent.backoff import Backoff


def test_the_bound_doubles_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    asked: list[tuple[float, float]] = []
    backoff = Backoff(0.5, 30, lambda low, high: asked.append((low, high)) or high)
    for _ in range(8):
        backoff.next_wait_s()
    backoff.reset()
    backoff.next_wait_s()
    assert asked == [(0, bound_s) for bound_s in (0.5, 1, 2, 4, 8, 16, 30, 30, 0.5)]


def test_after_a_longest_wait_all_are_long_until_there_is_a_success() -> None:
    asked: list[tuple[float, float]] = []
    backoff = Backoff(0.5, 30, lambda low, high: asked.append((low, high)) or high)
    for wait in (backoff.longest_wait_s, backoff.next_wait_s, backoff.longest_wait_s):
        wait()
    backoff.reset()
    backoff.next_wait_s()
    assert asked == [(15, 30), (0, 30), (15, 30), (0, 0.5)]
