"""Which agents a revision touched, and which of them do not have it in force yet.

Bounded: of the latest revisions only. What is forgotten, or was before the controller started, is answered on the safe side by
whoever asks here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from secgroups.controller.stream_messages import ObjectKey

REVISIONS_MAX = 4_096
# Of all revisions together: a touched agent and a marked object count one each.
ENTRIES_MAX = 262_144


@dataclass(slots=True, kw_only=True)
class Touched:
    """What one revision touched. ``in_force_us`` is when the last of its agents said so, None until then."""

    revision: int
    commit_us: int
    agent_ids: frozenset[str]
    keys: frozenset[ObjectKey]
    waiting: set[str]
    in_force_us: int | None = None

    @property
    def entries(self) -> int:
        return len(self.agent_ids) + len(self.keys)


class RevisionLog:
    """The latest revisions that touched an agent."""

    def __init__(self, start_revision: int) -> None:
        """Know nothing of ``start_revision`` and before."""
        self._touched: OrderedDict[int, Touched] = OrderedDict()
        self._entries = 0
        self._unknown_until = start_revision
        # By agent, ascending: the revisions that it does not have in force.
        self._waiting: dict[str, list[int]] = {}

    def add(self, revision: int, commit_us: int, agent_ids: Collection[str], keys: Collection[ObjectKey]) -> None:
        """Note a revision that touched ``agent_ids`` (at least one) by marking ``keys``."""
        agents = frozenset(agent_ids)
        touched = Touched(revision=revision, commit_us=commit_us, agent_ids=agents, keys=frozenset(keys), waiting=set(agents))
        self._touched[revision] = touched
        self._entries += touched.entries
        for agent_id in agents:
            self._waiting.setdefault(agent_id, []).append(revision)
        while len(self._touched) > REVISIONS_MAX or (self._entries > ENTRIES_MAX and len(self._touched) > 1):
            self._forget_oldest()

    def knows(self, revision: int) -> bool:
        """Whether it is known what a revision touched."""
        return revision > self._unknown_until

    def find(self, revision: int) -> Touched | None:
        """Return what a known revision touched, None if that was nothing."""
        return self._touched.get(revision)

    def since(self, revision: int) -> Iterator[Touched]:
        """Yield what the known revisions after one touched, the newest first."""
        for later in reversed(self._touched):
            if later <= revision:
                return
            yield self._touched[later]

    def waiting(self, agent_id: str) -> int:
        """Return how many known revisions are not in force on an agent."""
        return len(self._waiting.get(agent_id, ()))

    def settle(self, agent_id: str, until: int, is_blocked: Callable[[Touched], bool], now_us: int) -> None:
        """Note that an agent has in force what touched it up to and with ``until``, but for what ``is_blocked``."""
        revisions = self._waiting.get(agent_id, [])
        end = bisect_right(revisions, until)
        blocked = []
        for revision in revisions[:end]:
            touched = self._touched[revision]
            if is_blocked(touched):
                blocked.append(revision)
                continue
            touched.waiting.discard(agent_id)
            if not touched.waiting:
                touched.in_force_us = now_us
        revisions[:end] = blocked
        if not revisions:
            self._waiting.pop(agent_id, None)

    def _forget_oldest(self) -> None:
        revision, touched = self._touched.popitem(last=False)
        self._entries -= touched.entries
        self._unknown_until = revision
        for agent_id in touched.waiting:
            held = self._waiting[agent_id]
            held.remove(revision)
            if not held:
                del self._waiting[agent_id]
