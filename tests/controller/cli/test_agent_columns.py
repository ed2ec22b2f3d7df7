"""What ``sgctl agent list`` makes of what is known of an agent."""

from __future__ import annotations

import pytest

from secgroups.cli import kinds
from secgroups.v1 import agent_service_pb2 as pb

BOUNDS = [500, 5_000, 60_000_000]


def shown(key: str, agent: pb.Agent) -> str:
    (column,) = [column for column in kinds.agents().columns if column.key == key]
    return column.text(agent)


@pytest.mark.parametrize(
    ("p50", "p99", "bounds", "counts"),
    [
        ("", "", [], []),  # An agent of an older version reports none.
        ("", "", BOUNDS, [0, 0, 0, 0]),
        ("<= 0.5 ms", "<= 0.5 ms", BOUNDS, [1, 0, 0, 0]),
        ("<= 0.5 ms", "<= 0.5 ms", BOUNDS, [99, 1, 0, 0]),
        ("<= 0.5 ms", "<= 5 ms", BOUNDS, [98, 2, 0, 0]),
        ("<= 5 ms", "> 60000 ms", BOUNDS, [1, 8, 0, 2]),
        ("", "", [], [7]),  # Counted, but without a bound that could be named.
        ("", "", BOUNDS, [1, 2]),
    ],
    ids=str,
)
def test_delays_are_shown_by_the_bound_that_they_kept(p50: str, p99: str, bounds: list[int], counts: list[int]) -> None:
    histogram = pb.DelayHistogram(upper_bounds_micros=bounds, counts=counts)
    agent = pb.Agent(report=pb.Report(commit_to_in_force=histogram))
    assert (shown("in_force_p50", agent), shown("in_force_p99", agent)) == (p50, p99)


def test_a_snapshot_that_is_held_back_is_shown_by_what_it_would_remove() -> None:
    assert shown("held_back", pb.Agent()) == ""
    held_back = pb.HeldBack(revision=7, servers_removed=40, servers_held=50, max_removal=0.25)
    assert shown("held_back", pb.Agent(held_back=held_back)) == "40 of 50 servers"
