"""Which of many has the most of something, kept up while they change."""

from __future__ import annotations

from dataclasses import dataclass, field


class Tally:
    """Counts by id. A change costs the same however many there are, and to ask takes time in proportion to the different counts."""

    __slots__ = ("_counts", "_ids")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        # By count; not a set, so that of several with the most it is the one that has had it for longest.
        self._ids: dict[int, dict[str, None]] = {}

    def put(self, id_: str, count: int) -> None:
        """Note how many one has; 0 forgets it."""
        before = self._counts.pop(id_, 0)
        if count:
            self._counts[id_] = count
        if count == before:
            return
        if before:
            ids = self._ids[before]
            del ids[id_]
            if not ids:
                del self._ids[before]
        if count:
            self._ids.setdefault(count, {})[id_] = None

    def most(self) -> tuple[int, str]:
        """Return the largest count and an id that has it; 0 and an empty id if there is none."""
        if not self._ids:
            return 0, ""
        count = max(self._ids)
        return count, next(iter(self._ids[count]))


@dataclass(frozen=True, slots=True)
class ProjectTallies:
    """What limits of a project bound that groups and servers have several of."""

    rules_by_group: Tally = field(default_factory=Tally)
    groups_by_server: Tally = field(default_factory=Tally)
    addresses_by_server: Tally = field(default_factory=Tally)
