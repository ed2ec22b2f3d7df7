"""How long an agent waits before it connects again."""

from __future__ import annotations

from secgroups.agent.backoff import Backoff


def most(low: float, high: float) -> float:
    assert low == 0
    return high


def test_the_bound_doubles_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    backoff = Backoff(0.5, 30, most)
    assert [backoff.next_wait_s() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert backoff.next_wait_s() == 0.5


def test_after_a_longest_wait_all_are_long_until_there_is_a_success() -> None:
    backoff = Backoff(0.5, 30, most)
    assert [backoff.longest_wait_s(), backoff.next_wait_s(), backoff.longest_wait_s()] == [30, 30, 30]
    backoff.reset()
    assert backoff.next_wait_s() == 0.5
