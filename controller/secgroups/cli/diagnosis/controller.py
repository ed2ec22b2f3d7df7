"""The controller: whether it can be reached, its clock, the room on its disk, its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from secgroups.cli import pb
from secgroups.cli.diagnosis.finding import Finding

if TYPE_CHECKING:
    from secgroups.cli.client import Client

# More than what a call takes on its way, less than what does harm.
CLOCKS_APART_MAX_S = 5.0
# A backup takes as much room as the database, and so may what is written ahead of it; beyond that some air.
DATABASE_COPIES = 2
DISK_FREE_BYTES_MIN = 256 << 20


def look_at_controller(client: Client, now_s: float) -> Iterator[Finding]:
    """Yield what is wrong with the controller. ``now_s`` is this machine's time of day. CallError."""
    status = client.call(client.operator.GetStatus, pb.GetStatusRequest())
    ahead_s = status.time.ToNanoseconds() / 1e9 - now_s
    if abs(ahead_s) > CLOCKS_APART_MAX_S:
        yield Finding(
            what="CONTROLLER_CLOCK",
            text=f"the controller's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's",
            advice="set both by NTP: certificates and tokens begin and end by these clocks",
        )
    yield from judge_room(status.database_bytes, status.disk_free_bytes)


def judge_room(database_bytes: int, free_bytes: int) -> Iterator[Finding]:
    """Yield a finding if a disk has too little room for the database on it to grow and to be copied."""
    wanted_bytes = DATABASE_COPIES * database_bytes + DISK_FREE_BYTES_MIN
    if free_bytes < wanted_bytes:
        yield Finding(
            what="DISK_LOW",
            text=f"the disk of the database has {_mib(free_bytes)} free, less than {_mib(wanted_bytes)}",
            advice="make room, or move the data directory: with a full disk changes are refused, and there is no backup",
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"
