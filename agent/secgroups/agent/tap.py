"""Watching verdicts as they are given: a tap holds a bounded number of them until somebody reads.

A verdict never waits for a reader: what a full tap can't hold is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from secgroups.agent.errors import TooManyTapsError
from secgroups.agent.flow import Action, Packet, Verdict

# Each costs every verdict a little, and memory.
TAPS_MAX = 8
TAP_EVENTS_MAX = 65_536
ONE_IN_MAX = 1_000_000


class VerdictEvent(NamedTuple):
    """A verdict that was given at ``now_ns`` (monotonic nanoseconds)."""

    now_ns: int
    packet: Packet
    verdict: Verdict


class Tap(Protocol):
    """What every engine's taps can do; ``ReferenceTap`` says what it means."""

    @property
    def dropped(self) -> int: ...

    def read(self, most: int) -> list[VerdictEvent]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSettings:
    """How a tap takes. Raises ``ValueError`` for what is out of bounds.

    It holds up to ``events_max`` verdicts, 1 to ``TAP_EVENTS_MAX``; of the denials, or of all verdicts if ``allowed``, it takes
    the first and every ``one_in``-th after it, 1 to ``ONE_IN_MAX``.
    """

    events_max: int
    one_in: int = 1
    allowed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.events_max <= TAP_EVENTS_MAX:
            raise ValueError(f"events_max {self.events_max} is not in 1..{TAP_EVENTS_MAX}")
        if not 1 <= self.one_in <= ONE_IN_MAX:
            raise ValueError(f"one_in {self.one_in} is not in 1..{ONE_IN_MAX}")


class ReferenceTap:
    """A tap of the reference engine."""

    def __init__(self, settings: TapSettings, closed: Callable[[ReferenceTap], None]) -> None:
        self.settings = settings
        self._closed = closed
        self._events: deque[VerdictEvent] = deque()
        # How many verdicts to let pass before the next one is taken.
        self._passing = 0
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many verdicts it would have taken but for want of room, since it was made."""
        return self._dropped

    def offer(self, packet: Packet, verdict: Verdict, now_ns: int) -> None:
        """Take the verdict if it is one to take and there is room."""
        if verdict.action is Action.ALLOW and not self.settings.allowed:
            return
        if self._passing:
            self._passing -= 1
            return
        self._passing = self.settings.one_in - 1
        if len(self._events) < self.settings.events_max:
            self._events.append(VerdictEvent(now_ns, packet, verdict))
        else:
            self._dropped += 1

    def lose(self, count: int) -> None:
        """Note that ``count`` verdicts to take or to let pass were never offered."""
        taken = max(0, -((self._passing - count) // self.settings.one_in))
        self._passing += taken * self.settings.one_in - count
        self._dropped += taken

    def read(self, most: int) -> list[VerdictEvent]:
        """Return the oldest verdicts that it holds, at most ``most``, and make room for others."""
        return [self._events.popleft() for _ in range(min(most, len(self._events)))]

    def close(self) -> None:
        """Take nothing any more; what it holds can still be read. Closing again changes nothing."""
        self._closed(self)


class Taps:
    """The open taps of one engine, at most ``TAPS_MAX``. ``closed()`` is called when one has been closed."""

    def __init__(self, closed: Callable[[], None] | None = None) -> None:
        self._open: list[ReferenceTap] = []
        self._closed = closed

    @property
    def settings(self) -> list[TapSettings]:
        """How the open ones take."""
        return [tap.settings for tap in self._open]

    def open(self, settings: TapSettings) -> ReferenceTap:
        """Return a new tap. Raises ``TooManyTapsError``."""
        if len(self._open) >= TAPS_MAX:
            raise TooManyTapsError(TAPS_MAX)
        tap = ReferenceTap(settings, self._close)
        self._open.append(tap)
        return tap

    def offer(self, packet: Packet, verdict: Verdict, now_ns: int) -> None:
        """Show a verdict that was given to every tap."""
        for tap in self._open:
            tap.offer(packet, verdict, now_ns)

    def lose(self, count: int) -> None:
        """Tell every tap that ``count`` verdicts were given that it was not shown."""
        for tap in self._open:
            tap.lose(count)

    def close(self) -> None:
        """Close all that are open."""
        for tap in tuple(self._open):
            tap.close()

    def _close(self, tap: ReferenceTap) -> None:
        if tap in self._open:
            self._open.remove(tap)
            if self._closed is not None:
                self._closed()


class JoinedTap:
    """Takes what several taps take, in the order of time within what is read at once."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = taps

    @property
    def dropped(self) -> int:
        """How many verdicts they would have taken but for want of room, together."""
        return sum(tap.dropped for tap in self._taps)

    def read(self, most: int) -> list[VerdictEvent]:
        """Return the oldest verdicts of the first that hold any, at most ``most``, and make room for others."""
        found: list[VerdictEvent] = []
        for tap in self._taps:
            found += tap.read(most - len(found))
        return sorted(found, key=lambda event: event.now_ns)

    def close(self) -> None:
        """Close them all."""
        for tap in self._taps:
            tap.close()
