"""How it stands with a revision as far as one project is concerned: nothing of what is said depends on what others change.

A project that asks about a revision is answered about the newest of its own up to that one; what others have changed, and whether
it is in force, is nothing to it. Bounded: of the latest revisions only. Before these, all that counts is whether the agents that
guard the project's servers have acknowledged so much, and whether an object of the project stands in the way there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from secgroups.controller.agent_record import Standing
from secgroups.controller.audit import FOR_ADMINS
from secgroups.controller.in_force import REVISIONS_MAX

if TYPE_CHECKING:
    from secgroups.controller.model import Change
    from secgroups.controller.roster import Roster
    from secgroups.controller.state import State


class OwnRevisions:
    """The latest revisions of each project, ``REVISIONS_MAX`` of all together."""

    def __init__(self, state: State, roster: Roster) -> None:
        """Know nothing of the revision of ``state`` and before."""
        self._state = state
        self._roster = roster
        self._by_project: dict[str, deque[int]] = {}
        self._projects: deque[str] = deque()  # In the order of their revisions.
        self._unknown_until = state.revision

    def changed(self, changes: Sequence[Change]) -> None:
        """Take note of changes, in order of revision. What admins decide of a project is not its own."""
        for revision, batch in groupby(changes, key=lambda change: change.revision):
            things = [change.after or change.before for change in batch if change.kind not in FOR_ADMINS]
            for project in {thing.project for thing in things if thing is not None}:
                self._by_project.setdefault(project, deque()).append(revision)
                self._projects.append(project)
        while len(self._projects) > REVISIONS_MAX:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        project = self._projects.popleft()
        revisions = self._by_project[project]
        self._unknown_until = revisions.popleft()
        if not revisions:
            del self._by_project[project]

    def is_in_force(self, project: str, revision: int) -> bool:
        """Whether no agent lags behind the newest revision of a project up to ``revision``."""
        own = self._find_last(project, revision)
        if own is not None:
            return self._roster.is_in_force(own)
        return next(self._late(project, revision), None) is None

    def standing(self, project: str, revision: int) -> Standing:
        """Return how it stands with that revision. Without it, agents that are late are those that count as touched."""
        own = self._find_last(project, revision)
        if own is not None:
            return self._roster.standing(own)
        lagging = tuple(self._roster.lag(agent_id, self._known_point(revision), None) for agent_id in self._late(project, revision))
        return Standing(agents_touched=len(lagging), lagging=lagging, commit_to_in_force_us=None)

    def watch(self, project: str, revision: int, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` when it is worth asking again; return what ends that."""
        own = self._find_last(project, revision)
        if own is not None:
            return self._roster.watch(own, watcher)
        return self._roster.watch_agents(self._late(project, revision), lambda _: watcher())

    def _find_last(self, project: str, revision: int) -> int | None:
        """Return the newest revision of a project up to ``revision``, None if what it touched is not known any more."""
        revisions = self._by_project.get(project, ())
        at = bisect_right(revisions, revision)
        return revisions[at - 1] if at and self._roster.log.knows(revisions[at - 1]) else None

    def _known_point(self, revision: int) -> int:
        """Return a revision that is no older than the project's last one of which nothing is known."""
        return min(revision, max(self._unknown_until, self._roster.log.unknown_until))

    def _late(self, project: str, revision: int) -> Iterator[str]:
        """Yield, in ascending order, the agents of a project's servers that may lack what it changed before what is known."""
        until = self._known_point(revision)
        for agent_id in sorted({server.agent_id for server in self._state.servers(project)} - {""}):
            if self._roster.may_lack(agent_id, project, until):
                yield agent_id
