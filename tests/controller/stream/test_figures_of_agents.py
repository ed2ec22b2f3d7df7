"""What an agent says of itself is checked: figures that are wrong are left out, claims that can not be are refused."""

from __future__ import annotations

import pytest

from secgroups.controller.delays import DelayCounts
from secgroups.controller.errors import InvalidError
from secgroups.controller.services.stream_wire import CLOCK_AHEAD_MAX_US, hello_of, report_message, report_of
from secgroups.controller.stream_messages import HeldBack
from secgroups.v1 import agent_service_pb2 as pb

NOW_US = 1_700_000_000_000_000
CENTURY_US = CLOCK_AHEAD_MAX_US


@pytest.mark.parametrize(
    ("taken", "bounds", "counts"),
    [
        (True, [500, 1_000], [1, 2, 3]),
        (True, [], [7]),
        (True, range(1, 65), [1] * 65),
        (False, range(1, 66), [1] * 66),
        (False, [500, 1_000], [1, 2]),
        (False, [500, 1_000], [1, 2, 3, 4]),
        (False, [1_000, 500], [1, 2, 3]),
        (False, [500, 500], [1, 2, 3]),
        (False, [500], []),
        (False, [], []),
    ],
    ids=str,
)
def test_a_histogram_is_taken_whole_or_not_at_all(taken: bool, bounds: list[int], counts: list[int]) -> None:
    histogram = pb.DelayHistogram(upper_bounds_micros=bounds, counts=counts, sum_micros=9)
    report = report_of(pb.Report(flows=3, verdicts={"REASON_NEW": 2, "nonsense": 1}, commit_to_in_force=histogram), NOW_US)
    expected = DelayCounts(bounds_us=tuple(bounds), counts=tuple(counts), sum_us=9) if taken else None
    assert (report.flows, report.verdicts, report.commit_to_in_force) == (3, {"REASON_NEW": 2}, expected)
    shown = report_message(report)
    assert shown.HasField("commit_to_in_force") == taken
    if taken:
        assert shown.commit_to_in_force == histogram


@pytest.mark.parametrize(
    ("refused", "share"), [(False, 0.0), (False, 0.25), (False, 1.0), (True, -0.1), (True, 1.1), (True, float("nan"))], ids=str
)
def test_a_held_back_snapshot_is_taken_as_it_is_told_if_its_share_is_one(refused: bool, share: float) -> None:
    told = pb.HeldBack(revision=7, servers_removed=40, servers_held=50, max_removal=share)
    request = pb.SubscribeRequest(hello=pb.Hello(agent_id="a", boot_id="b", held_back=told))
    if refused:
        with pytest.raises(InvalidError) as caught:
            hello_of(request)
        assert caught.value.violations[0].field == "hello.held_back.max_removal"
    else:
        assert hello_of(request).held_back == HeldBack(revision=7, servers_removed=40, servers_held=50, max_removal=share)


def test_an_agent_that_holds_nothing_back_says_nothing_of_it() -> None:
    assert hello_of(pb.SubscribeRequest(hello=pb.Hello(agent_id="a", boot_id="b"))).held_back is None


@pytest.mark.parametrize(
    ("ahead_us", "seconds", "nanos"),
    [
        (0, 1_700_000_000, 0),
        (60_000_000, 1_700_000_060, 0),
        (-60_000_000, 1_699_999_940, 0),
        (1, 1_700_000_000, 1_999),
        (CENTURY_US, (1 << 63) - 1, 0),
        (-CENTURY_US, -(1 << 63), -1),
    ],
    ids=str,
)
def test_by_how_much_its_clock_is_ahead_is_told_within_a_century(ahead_us: int, seconds: int, nanos: int) -> None:
    report = pb.Report()
    report.time.seconds, report.time.nanos = seconds, nanos
    assert report_of(report, NOW_US).clock_ahead_us == ahead_us
    assert report_of(pb.Report(), NOW_US).clock_ahead_us is None
