"""When this start of the agent was, in an order that the clock can't turn round.

Of two processes that claim one agent id the controller hears the later start. A machine whose clock was put back, or has none until
it is told the time, would lose to what is left of its own previous start. So a start is later than all before it in the same
folder, whatever the clock says. Starts on other machines are compared by their clocks.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# The controller compares microseconds.
_STEP_NS = 1_000
# The last that a protobuf Timestamp can say, the end of the year 9999; what is beyond was not written by us.
_LATEST_NS = 253_402_300_799 * 1_000_000_000
_DIGITS = 21


def next_boot_time_ns(file: Path, now_ns: int) -> int:
    """Return ``now_ns``, nanoseconds since the Unix epoch, or just after the last start that ``file`` tells of; tell of it there.

    A file that can't be read or written is no reason not to start: ``now_ns`` is then all there is to go by.
    """
    last_ns = 0
    with suppress(OSError, ValueError):
        last_ns = int(file.read_bytes()[:_DIGITS])
    begun_ns = max(now_ns, last_ns + _STEP_NS) if 0 < last_ns < _LATEST_NS else now_ns
    # In place and always as long, so that it takes no room on a disk that has become full since.
    with suppress(OSError), file.open("r+b") as kept:
        kept.write(b"%0*d\n" % (_DIGITS, begun_ns))
    return begun_ns
