"""How many servers a snapshot may take away at once: a controller that has lost its data must not disarm the agents.

A snapshot removes what it does not mention, so an empty database in place of the real one would remove everything. Removals that
are spelled out in an update are what somebody asked for, and are not limited.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A snapshot that is not applied: of ``servers_held`` servers in force ``servers_removed`` would go."""

    store_epoch: str
    revision: int
    servers_removed: int
    servers_held: int
    max_removal: float

    def __str__(self) -> str:
        return (
            f"its snapshot at revision {self.revision} would remove {self.servers_removed} of {self.servers_held} servers,"
            f" more than the share of {self.max_removal} that max_removal allows"
        )


class RemovalLimit:
    """Holds back what would remove more than the share ``max_removal`` of the servers in force, 0 < share ≤ 1; 1 lets all pass."""

    def __init__(self, max_removal: float = 1.0) -> None:
        self.max_removal = max_removal
        # The share as it was written: of 100 servers 0.29 allows 29, though the nearest binary number is a little less.
        self._share = Fraction(str(max_removal))

    def exceeded(self, *, removed: int, held: int) -> bool:
        """Whether ``removed`` of ``held`` servers are too many. The share itself is allowed."""
        return removed > self._share * held
