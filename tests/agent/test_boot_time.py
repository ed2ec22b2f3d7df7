"""A start of an agent is later than those before it in the same folder, whatever the clock says."""

from __future__ import annotations

from pathlib import Path

import pytest

from secgroups.agent.boot_time import next_boot_time_ns

NOW_NS = 1_800_000_000_000_000_000
LATEST_NS = 253_402_300_799 * 10**9


@pytest.mark.parametrize(
    ("expected", "clocks_ns"),
    [
        ([NOW_NS, NOW_NS + 5_000], [NOW_NS, NOW_NS + 5_000]),
        ([NOW_NS, NOW_NS + 1_000], [NOW_NS, NOW_NS]),  # One microsecond later: what the controller can tell apart.
        ([NOW_NS, NOW_NS + 1_000, NOW_NS + 2_000], [NOW_NS, NOW_NS - 10**18, 0]),
        ([NOW_NS, NOW_NS + 1_000, NOW_NS + 10**9], [NOW_NS, 0, NOW_NS + 10**9]),  # Until the clock is right again.
    ],
    ids=["the clock goes on", "it stands still", "it is put back", "and right again"],
)
def test_starts_of_one_folder_ascend(tmp_path: Path, expected: list[int], clocks_ns: list[int]) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    assert [next_boot_time_ns(lock, clock_ns) for clock_ns in clocks_ns] == expected
    assert lock.stat().st_size == 22


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 22, b"x" * 22, b"-1", b"9" * 21, b"%021d\n" % LATEST_NS],
    ids=["empty", "zeros", "text", "-1", "nines", "the end of time"],
)
def test_what_was_not_written_by_an_agent_is_not_gone_by(tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / "lock"
    lock.write_bytes(content)
    assert next_boot_time_ns(lock, NOW_NS) == NOW_NS
    assert next_boot_time_ns(lock, 0) == NOW_NS + 1_000


def test_a_file_that_can_not_be_written_is_no_obstacle(tmp_path: Path) -> None:
    assert next_boot_time_ns(tmp_path / "none", NOW_NS) == NOW_NS
    assert next_boot_time_ns(tmp_path, NOW_NS) == NOW_NS
