"""Delays are counted within what a report has room for, whatever they are."""

from __future__ import annotations

from secgroups.agent.delays import BOUNDS_US, Delays
from secgroups.v1 import agent_service_pb2 as pb

CENTURIES_US = 62_135_596_800 * 1_000_000


def test_delays_fall_into_buckets_with_inclusive_bounds_and_none_is_below_zero() -> None:
    delays = Delays()
    for delay_us in (-1, 0, BOUNDS_US[0], BOUNDS_US[0] + 1, BOUNDS_US[-1], BOUNDS_US[-1] + 1):
        delays.add(delay_us)
    counted = delays.counted()
    assert counted.counts[:2] == (3, 1)
    assert counted.counts[-2:] == (1, 1)
    assert counted.sum_us == 2 * BOUNDS_US[0] + 1 + 2 * BOUNDS_US[-1] + 1


def test_commit_times_centuries_away_do_not_add_up_to_more_than_a_report_can_hold() -> None:
    delays = Delays()
    for _ in range(1_000):
        delays.add(CENTURIES_US)
    counted = delays.counted()
    assert counted.counts[-1] == 1_000
    assert pb.DelayHistogram(counts=counted.counts, sum_micros=counted.sum_us).sum_micros == (1 << 64) - 1
