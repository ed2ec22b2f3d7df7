"""Which agents a revision touched, and how many of them do not have it in force yet.

Bounded: of the latest revisions only. What is forgotten, or was before the controller started, is answered on the safe side by
whoever asks here.

What touches few agents costs an entry in each one's own queue. What touches many costs one entry in the queue of their crowd, in
which each of them has a place: a change for thousands of agents costs no more than one for a few, and an acknowledgement moves one
place however many revisions it is about. Queues ascend: what an agent has in force, and what is forgotten, is at their beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secgroups.controller.delays import Delays
from secgroups.controller.stream_messages import ObjectKey

if TYPE_CHECKING:
    from secgroups.controller.resume import Since

REVISIONS_MAX = 4_096
# Of all revisions together: each with its keys, each agent's place in a queue and in a set, and the places in crowds.
BYTES_MAX = 64 << 20
_ENTRY_BYTES = 256
_KEY_BYTES = 64
_PLACE_BYTES = 72
_CROWD_PLACE_BYTES = 160
# Agents that revisions touch together are a crowd if they are so many. Most changes touch one of these many crowds.
CROWD_MIN = 32
CROWDS_MAX = 64
# Queues of agents that are looked through, at least, before the next time; agents come and go by name.
SWEEP_MIN = 1_024


@dataclass(slots=True, kw_only=True, eq=False)
class Touched:
    """What each of some revisions touched that became visible at once, so that agents have them in force at once.

    ``commits`` ascend. ``waiting`` agents do not have them in force, a crowd counting for one as long as it has such agents.
    ``in_force_us`` is when the last of them said so; None until then, and if the last of them left in place of saying so.
    ``removes_for_good``: something was taken away that nobody guards then, so that who is gone counts until it has heard of it.
    """

    commits: Sequence[Since]
    agent_ids: frozenset[str]
    keys: frozenset[ObjectKey]
    removes_for_good: bool
    waiting: int
    size_bytes: int
    in_force_us: int | None = None
    watchers: dict[Callable[[], None], None] | None = None

    @property
    def last_revision(self) -> int:
        return self.commits[-1].revision

    def commit_us(self, revision: int) -> int:
        """Return when one of its revisions was committed."""
        return next(commit.commit_us for commit in self.commits if commit.revision == revision)


def _first_revision(touched: Touched) -> int:
    return touched.commits[0].revision


class _Crowd:
    """Many agents that revisions touched together, and how far each of them is."""

    def __init__(self, agent_ids: frozenset[str]) -> None:
        self.agent_ids = agent_ids
        self._queue: deque[Touched] = deque()
        self._begin = 0  # How many have left the queue.
        self._places = dict.fromkeys(agent_ids, 0)  # How many each agent has passed.
        self._standing = Counter({0: len(agent_ids)})  # How many agents stand at a place.

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._places

    @property
    def is_idle(self) -> bool:
        """Whether everybody has passed everything."""
        return not self._queue

    def add(self, touched: Touched) -> None:
        """Have everybody wait for one more."""
        self._queue.append(touched)

    def waits_for(self, agent_id: str) -> list[Touched]:
        """Return what an agent has not passed, ascending."""
        return list(self._queue)[self._places[agent_id] - self._begin :]

    def find_first(self, agent_id: str) -> Touched | None:
        """Return the oldest that an agent has not passed."""
        at = self._places[agent_id] - self._begin
        return self._queue[at] if at < len(self._queue) else None

    def move(self, agent_id: str, until: int | None) -> list[Touched]:
        """Move an agent past all that begins with ``until`` or before, None for all; return what nobody waits for any more."""
        at = self._places[agent_id] - self._begin
        to = len(self._queue)
        if until is not None and to > at:
            to = bisect_right(self._queue, until, lo=at, key=_first_revision)
        return self._move(agent_id, self._begin + to) if to > at else []

    def forget(self, touched: Touched) -> list[str]:
        """Drop an entry, which is the oldest if it is there; return those who had not passed it."""
        if not self._queue or self._queue[0] is not touched:
            return []
        late = [agent_id for agent_id, place in self._places.items() if place == self._begin]
        for agent_id in late:
            self._move(agent_id, self._begin + 1)
        return late

    def _move(self, agent_id: str, place: int) -> list[Touched]:
        old = self._places[agent_id]
        self._places[agent_id] = place
        self._standing[place] += 1
        self._standing[old] -= 1
        done = []
        while self._queue and not self._standing[self._begin]:
            del self._standing[self._begin]
            self._begin += 1
            done.append(self._queue.popleft())
        return done


@dataclass(slots=True)
class _Behind:
    """What an agent does not have in force; and what of that was forgotten: how many, the last, when the first was.

    ``waiting`` is its own queue. ``kept`` is what it has passed there or in a crowd and counts all the same, by the object that
    stands against it; None if that is not an object but that it has not heard of it.
    """

    waiting: deque[Touched] = field(default_factory=deque)
    kept: dict[ObjectKey | None, list[Touched]] = field(default_factory=dict)
    forgotten: int = 0
    forgotten_until: int = 0
    forgotten_commit_us: int = 0

    def keep(self, touched: Touched, key: ObjectKey | None) -> None:
        self.kept.setdefault(key, []).append(touched)

    @property
    def all_kept(self) -> list[Touched]:
        return [touched for each in self.kept.values() for touched in each]

    def forget(self, touched: Touched) -> None:
        if not self.forgotten:
            self.forgotten_commit_us = touched.commits[0].commit_us
        self.forgotten += len(touched.commits)
        self.forgotten_until = max(self.forgotten_until, touched.last_revision)

    def forget_own(self, touched: Touched) -> None:
        """Forget what is the oldest of the queue, or kept, if it is."""
        if self.waiting and self.waiting[0] is touched:
            self.waiting.popleft()
            self.forget(touched)
            return
        for key, kept in list(self.kept.items()):
            if touched in kept:
                self.forget(touched)
                kept.remove(touched)
                if not kept:
                    del self.kept[key]


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
        self._crowds: OrderedDict[frozenset[str], _Crowd] = OrderedDict()

    def add(
        self,
        commits: Sequence[Since],
        agent_ids: Collection[str],
        keys: Collection[ObjectKey],
        *,
        removes_for_good: bool = False,
    ) -> None:
        """Note revisions, ascending, each of which touched ``agent_ids`` (at least one) by marking ``keys``.

        The keys are marked at once for all of them. The first revision is not below that of the entry before.
        """
        touched = Touched(
            commits=commits,
            agent_ids=frozenset(agent_ids),
            keys=frozenset(keys),
            removes_for_good=removes_for_good,
            waiting=1,
            size_bytes=_ENTRY_BYTES * len(commits) + _KEY_BYTES * len(keys),
        )
        crowd = self._find_crowd(touched.agent_ids) if len(touched.agent_ids) >= CROWD_MIN else None
        if crowd is not None:
            # The set is the crowd's own.
            touched.agent_ids = crowd.agent_ids
            crowd.add(touched)
        else:
            touched.waiting = len(touched.agent_ids)
            touched.size_bytes += _PLACE_BYTES * touched.waiting
            for agent_id in touched.agent_ids:
                self._of(agent_id).waiting.append(touched)
        for commit in commits:
            self._touched[commit.revision] = touched
        self._bytes += touched.size_bytes
        while len(self._touched) > REVISIONS_MAX or (self._bytes > BYTES_MAX and len(self._touched) > len(commits)):
            if not (self._bytes > BYTES_MAX and self._drop_idle_crowd()):
                self._forget_oldest()
        if len(self._behind) > self._sweep_at:
            self._sweep()

    def _of(self, agent_id: str) -> _Behind:
        behind = self._behind.get(agent_id)
        if behind is None:
            behind = self._behind[agent_id] = _Behind()
        return behind

    def _find_crowd(self, agent_ids: frozenset[str]) -> _Crowd | None:
        """Return the crowd of these agents, which may be a new one; None if there are too many that are not idle."""
        crowd = self._crowds.get(agent_ids)
        if crowd is not None:
            self._crowds.move_to_end(agent_ids)
            return crowd
        if len(self._crowds) >= CROWDS_MAX and not self._drop_idle_crowd():
            return None
        self._bytes += _CROWD_PLACE_BYTES * len(agent_ids)
        crowd = self._crowds[agent_ids] = _Crowd(agent_ids)
        return crowd

    def _drop_idle_crowd(self) -> bool:
        """Drop the crowd that was least lately touched of those that wait for nothing; whether there was one."""
        idle = next((crowd for crowd in self._crowds.values() if crowd.is_idle), None)
        if idle is None:
            return False
        del self._crowds[idle.agent_ids]
        self._bytes -= _CROWD_PLACE_BYTES * len(idle.agent_ids)
        return True

    def _crowds_of(self, agent_id: str) -> list[_Crowd]:
        return [crowd for crowd in self._crowds.values() if agent_id in crowd]

    @property
    def unknown_until(self) -> int:
        """The newest revision of which it is not known what it touched."""
        return self._unknown_until

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
            if touched.last_revision <= revision:
                return
            if touched is not last:
                yield touched
            last = touched

    def waiting(self, agent_id: str) -> int:
        """Return how many revisions since the start are not in force on an agent."""
        behind = self._behind.get(agent_id)
        own = [*behind.waiting, *behind.all_kept] if behind else []
        crowds = [touched for crowd in self._crowds_of(agent_id) for touched in crowd.waits_for(agent_id)]
        return sum(len(touched.commits) for touched in (*own, *crowds)) + (behind.forgotten if behind else 0)

    def find_oldest_commit_us(self, agent_id: str) -> int | None:
        """Return when the oldest revision since the start was committed that is not in force on an agent; None if all are."""
        behind = self._behind.get(agent_id)
        if behind and behind.forgotten:
            return behind.forgotten_commit_us
        oldest = [first for crowd in self._crowds_of(agent_id) if (first := crowd.find_first(agent_id)) is not None]
        if behind:
            oldest += [*behind.all_kept, *([behind.waiting[0]] if behind.waiting else [])]
        return min(oldest, key=_first_revision).commits[0].commit_us if oldest else None

    def settle(
        self,
        agent_id: str,
        until: int,
        now_us: int,
        find_obstacle: Callable[[Touched], ObjectKey | None] | None = None,
        lasting: Container[ObjectKey] = (),
    ) -> None:
        """Note that an agent has in force what touched it up to and with ``until``, but for that in which there is an obstacle.

        ``find_obstacle`` returns an object that stands against it; None in its place if there is none anywhere. An obstacle that
        is one of ``lasting`` goes on to be one.
        """
        for crowd in self._crowds_of(agent_id):
            if find_obstacle is not None:
                for touched in crowd.waits_for(agent_id):
                    if _first_revision(touched) <= until and (key := find_obstacle(touched)) is not None:
                        touched.waiting += 1
                        self._of(agent_id).keep(touched, key)
            for touched in crowd.move(agent_id, until):
                self._take_off(touched, now_us)
        behind = self._behind.get(agent_id)
        if behind is None:
            return
        again = [key for key in behind.kept if key not in lasting]
        passed = [touched for key in again for touched in behind.kept.pop(key)]
        while behind.waiting and _first_revision(behind.waiting[0]) <= until:
            passed.append(behind.waiting.popleft())
        for touched in passed:
            if _first_revision(touched) > until:
                behind.keep(touched, None)
            elif find_obstacle is not None and (key := find_obstacle(touched)) is not None:
                behind.keep(touched, key)
            else:
                self._take_off(touched, now_us)
        # What is blocked of that which was forgotten is not known; as long as something may be, all of it counts.
        if find_obstacle is None and behind.forgotten_until <= until:
            behind.forgotten = 0

    def release(self, agent_id: str) -> None:
        """Wait for an agent that is gone no more, but for what it was to lose for good."""
        for crowd in self._crowds_of(agent_id):
            for touched in crowd.waits_for(agent_id):
                if touched.removes_for_good:
                    touched.waiting += 1
                    self._of(agent_id).keep(touched, None)
            for touched in crowd.move(agent_id, None):
                self._take_off(touched, None)
        behind = self._behind.get(agent_id)
        if behind is None:
            return
        held = [*behind.all_kept, *behind.waiting]
        behind.kept.clear()
        behind.waiting.clear()
        for touched in held:
            if touched.removes_for_good:
                behind.keep(touched, None)
            else:
                self._take_off(touched, None)

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

    def _forget_oldest(self) -> None:
        touched = next(iter(self._touched.values()))
        for commit in touched.commits:
            del self._touched[commit.revision]
        self._bytes -= touched.size_bytes
        self._unknown_until = max(self._unknown_until, touched.last_revision)
        if touched.waiting:
            crowd = self._crowds.get(touched.agent_ids)
            if crowd is not None:
                for agent_id in crowd.forget(touched):
                    self._of(agent_id).forget(touched)
            for agent_id in touched.agent_ids:
                behind = self._behind.get(agent_id)
                if behind is not None:
                    behind.forget_own(touched)
        _tell(touched)

    def _sweep(self) -> None:
        """Drop the counts of what was forgotten for agents that are not known any more."""
        for agent_id, behind in list(self._behind.items()):
            if not behind.waiting and not behind.kept and not self._is_known(agent_id):
                del self._behind[agent_id]
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._behind))


def _tell(touched: Touched) -> None:
    watchers, touched.watchers = touched.watchers, None
    for watcher in watchers or ():
        watcher()
