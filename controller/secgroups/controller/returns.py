"""When those who are sent away by a controller that stops may come back: one after another, not all at once."""

from __future__ import annotations

from itertools import count

# A restart takes about that long.
FIRST_S = 1.0
# One that has little to be told costs a millisecond or less.
RETURNS_PER_S = 500
# The last of very many is away no longer than this; beyond it several have the same time.
SPREAD_MAX_S = 30.0


class Returns:
    """Hands out times, each once until all are given."""

    def __init__(self) -> None:
        self._places = count()

    def next_s(self) -> float:
        """Return in how many seconds the next one may come back."""
        return FIRST_S + next(self._places) % round(SPREAD_MAX_S * RETURNS_PER_S) / RETURNS_PER_S
