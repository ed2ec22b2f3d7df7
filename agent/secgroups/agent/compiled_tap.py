"""Taps of the compiled engine: rings in its core, read as packets and verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secgroups.agent.errors import TooManyTapsError
from secgroups.agent.records import unpack, unpack_verdict
from secgroups.agent.tap import TAPS_MAX, TapSettings, VerdictEvent

if TYPE_CHECKING:
    from secgroups.agent.compiled_table import CompiledTable


class CompiledTap:
    """A tap as ``tap`` (the module) says. A server that went meanwhile and a rule that went have no name."""

    def __init__(self, table: CompiledTable, settings: TapSettings) -> None:
        """Raises ``TooManyTapsError``."""
        self._table = table
        self._number: int | None = table.core.open_tap(settings.events_max, settings.one_in, settings.allowed)
        if self._number < 0:
            raise TooManyTapsError(TAPS_MAX)
        self._left: list[VerdictEvent] = []
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many verdicts it would have taken but for want of room, since it was made."""
        return self._dropped if self._number is None else self._table.core.tap_dropped(self._number)

    def read(self, most: int) -> list[VerdictEvent]:
        """Return the oldest verdicts that it holds, at most ``most``, and make room for others."""
        if self._number is not None:
            return self._read(self._number, most)
        found, self._left = self._left[:most], self._left[most:]
        return found

    def _read(self, number: int, most: int) -> list[VerdictEvent]:
        name_of, rule_id = self._table.name_of, self._table.numbers.rule_id
        return [
            VerdictEvent(now_ns, unpack(record, quote, name_of), unpack_verdict(verdict, rule_id).verdict)
            for now_ns, record, quote, verdict in self._table.core.read_tap(number, most)
        ]

    def close(self) -> None:
        """Take nothing any more; what it holds can still be read. Closing again changes nothing."""
        if self._number is None:
            return
        number = self._number
        self._dropped, self._left = self.dropped, self._read(number, 1 << 31)
        self._number = None
        self._table.core.close_tap(number)
