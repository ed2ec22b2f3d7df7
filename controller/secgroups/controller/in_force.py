"""Which agents a revision touched, and how many of them do not have it in force yet.

Bounded: of the latest revisions only. What is forgotten, or was before the controller started, is answered on the safe side by
whoever asks here. Noting a revision, and that an agent has it, costs one entry in the agent's own queue, which ascends: what an
agent acknowledges, and what is forgotten, is always at its beginning.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secgroups.controller.delays import Delays
from secgroups.controller.stream_messages import ObjectKey

if TYPE_CHECKING:
    from secgroups.controller.resume import Since

REVISIONS_MAX = 4_096
# Of all revisions together. A touched agent costs its place in a queue, and in a set unless the set is one that is shared.
BYTES_MAX = 64 << 20
_PLACE_BYTES = 8
_MEMBER_BYTES = 64
# Most changes touch the same agents as one of these many before it, and share the set of them.
SETS_SHARED_MAX = 64
# Queues of agents that are looked through, at least, before the next time; agents come and go by name.
SWEEP_MIN = 1_024


@dataclass(slots=True, kw_only=True, eq=False)
class Touched:
    """What each of some revisions touched that became visible at once, so that agents have them in force at once.

    ``commits`` ascend. ``waiting`` of the agents do not have them in force. ``in_force_us`` is when the last of them said so; None
    until then, and if the last of them left in place of saying so.
    """

    commits: Sequence[Since]
    agent_ids: frozenset[str]
    keys: frozenset[ObjectKey]
    waiting: int
    size_bytes: int
    in_force_us: int | None = None
    watchers: dict[Callable[[], None], None] | None = None

    def commit_us(self, revision: int) -> int:
        """Return when one of its revisions was committed."""
        return next(commit.commit_us for commit in self.commits if commit.revision == revision)


@dataclass(slots=True)
class _Behind:
    """What an agent does not have in force, ascending; and what of that was forgotten: how many, the last, when the first was."""

    waiting: deque[Touched] = field(default_factory=deque)
    forgotten: int = 0
    forgotten_until: int = 0
    forgotten_commit_us: int = 0

    def forget(self, touched: Touched) -> None:
        if self.waiting and self.waiting[0] is touched:
            self.waiting.popleft()
            if not self.forgotten:
                self.forgotten_commit_us = touched.commits[0].commit_us
            self.forgotten += len(touched.commits)
            self.forgotten_until = touched.commits[-1].revision


class RevisionLog:
    """The latest revisions that touched an agent. ``delays`` has one entry for each: from its commit until it was in force."""

    def __init__(self, start_revision: int, is_known: Callable[[str], bool]) -> None:
        """Know nothing of ``start_revision`` and before. What is forgotten is counted for agents that ``is_known``."""
        self.delays = Delays()
        self._is_known = is_known
        self._touched: OrderedDict[int, Touched] = OrderedDict()
        self._bytes = 0
        self._unknown_until = start_revision
        self._behind: dict[str, _Behind] = {}
        self._sweep_at = SWEEP_MIN
        self._shared: OrderedDict[frozenset[str], frozenset[str]] = OrderedDict()

    def add(self, commits: Sequence[Since], agent_ids: Collection[str], keys: Collection[ObjectKey]) -> None:
        """Note revisions, ascending, each of which touched ``agent_ids`` (at least one) by marking ``keys``.

        The keys are marked at once for all of them. The first revision is not below that of the entry before.
        """
        own = frozenset(agent_ids)
        agents = self._share(own)
        touched = Touched(
            commits=commits,
            agent_ids=agents,
            keys=frozenset(keys),
            waiting=len(agents),
            size_bytes=_PLACE_BYTES * len(agents) + _MEMBER_BYTES * (len(keys) + (len(agents) if agents is own else 0)),
        )
        for commit in commits:
            self._touched[commit.revision] = touched
        self._bytes += touched.size_bytes
        behind = self._behind
        for agent_id in agents:
            held = behind.get(agent_id)
            if held is None:
                held = behind[agent_id] = _Behind()
            held.waiting.append(touched)
        while len(self._touched) > REVISIONS_MAX or (self._bytes > BYTES_MAX and len(self._touched) > 1):
            self._forget_oldest()
        if len(behind) > self._sweep_at:
            self._sweep()

    def knows(self, revision: int) -> bool:
        """Whether it is known what a revision touched."""
        return revision > self._unknown_until

    def find(self, revision: int) -> Touched | None:
        """Return what a known revision touched, None if that was nothing."""
        return self._touched.get(revision)

    def since(self, revision: int) -> Iterator[Touched]:
        """Yield what the known revisions after one touched, the newest first; of those told of together the oldest counts."""
        last = None
        for touched in reversed(self._touched.values()):
            if touched.commits[-1].revision <= revision:
                return
            if touched is not last:
                yield touched
            last = touched

    def waiting(self, agent_id: str) -> int:
        """Return how many revisions since the start are not in force on an agent."""
        behind = self._behind.get(agent_id)
        return sum(len(touched.commits) for touched in behind.waiting) + behind.forgotten if behind else 0

    def find_oldest_commit_us(self, agent_id: str) -> int | None:
        """Return when the oldest revision since the start was committed that is not in force on an agent; None if all are."""
        behind = self._behind.get(agent_id)
        if behind is None or not (behind.waiting or behind.forgotten):
            return None
        return behind.forgotten_commit_us if behind.forgotten else behind.waiting[0].commits[0].commit_us

    def settle(self, agent_id: str, until: int, is_blocked: Callable[[Touched], bool] | None, now_us: int) -> None:
        """Note that an agent has in force what touched it up to and with ``until``, but for what ``is_blocked``, if anything is."""
        behind = self._behind.get(agent_id)
        if behind is None:
            return
        waiting = behind.waiting
        blocked = []
        while waiting and waiting[0].commits[0].revision <= until:
            touched = waiting.popleft()
            if is_blocked is not None and is_blocked(touched):
                blocked.append(touched)
            else:
                self._take_off(touched, now_us)
        waiting.extendleft(reversed(blocked))
        # What is blocked of that which was forgotten is not known; as long as something may be, all of it counts.
        if is_blocked is None and behind.forgotten_until <= until:
            behind.forgotten = 0

    def release(self, agent_id: str, counts: Callable[[Touched], bool]) -> None:
        """Wait for an agent that is gone no more, but for what still ``counts``."""
        behind = self._behind.get(agent_id)
        if behind is None:
            return
        kept = []
        for touched in behind.waiting:
            if counts(touched):
                kept.append(touched)
            else:
                self._take_off(touched, None)
        behind.waiting = deque(kept)
        if not kept and not behind.forgotten:
            del self._behind[agent_id]

    def watch(self, touched: Touched, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` once when nobody is waited for, or ``touched`` is forgotten; return what ends that."""
        watchers = touched.watchers = touched.watchers or {}
        watchers[watcher] = None
        return lambda: watchers.pop(watcher, None)

    def _take_off(self, touched: Touched, now_us: int | None) -> None:
        touched.waiting -= 1
        if touched.waiting:
            return
        if now_us is not None:
            touched.in_force_us = now_us
            for commit in touched.commits:
                self.delays.add(now_us - commit.commit_us)
        _tell(touched)

    def _share(self, agent_ids: frozenset[str]) -> frozenset[str]:
        shared = self._shared.setdefault(agent_ids, agent_ids)
        self._shared.move_to_end(shared)
        if len(self._shared) > SETS_SHARED_MAX:
            self._shared.popitem(last=False)
        return shared

    def _forget_oldest(self) -> None:
        touched = next(iter(self._touched.values()))
        for commit in touched.commits:
            del self._touched[commit.revision]
        self._bytes -= touched.size_bytes
        self._unknown_until = max(self._unknown_until, touched.commits[-1].revision)
        for agent_id in touched.agent_ids if touched.waiting else ():
            behind = self._behind.get(agent_id)
            if behind is not None:
                behind.forget(touched)
        _tell(touched)

    def _sweep(self) -> None:
        """Drop the counts of what was forgotten for agents that are not known any more."""
        for agent_id, behind in list(self._behind.items()):
            if not behind.waiting and not self._is_known(agent_id):
                del self._behind[agent_id]
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._behind))


def _tell(touched: Touched) -> None:
    watchers, touched.watchers = touched.watchers, None
    for watcher in watchers or ():
        watcher()
