"""Numbers that stand for names in packed records, where a name has no room."""

from __future__ import annotations

from collections.abc import Callable

# A handle is an unsigned 32-bit number in a record; 0 stands for nothing.
HANDLE_MAX = 0xFFFF_FFFF


class Handles:
    """One number for each name that was asked for, until it is dropped.

    A number that was dropped does not come back for another name before four thousand million others were given.
    """

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def handle(self, name: str) -> int:
        """Return the number of ``name``, which it has from now on if it had none."""
        held = self._handles.get(name)
        if held is not None:
            return held
        self._last = self._last % HANDLE_MAX + 1
        while self._last in self._names:
            self._last = self._last % HANDLE_MAX + 1
        self._handles[name] = self._last
        self._names[self._last] = name
        return self._last

    def name(self, handle: int) -> str:
        """Return what ``handle`` stands for, empty if for nothing."""
        return self._names.get(handle, "")

    def drop_unless(self, is_kept: Callable[[str], bool]) -> None:
        """Drop the numbers of all names but those that are kept."""
        for name in [name for name in self._handles if not is_kept(name)]:
            del self._names[self._handles.pop(name)]
