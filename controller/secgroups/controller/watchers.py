"""Wakes those who watch effective rulesets: at every change that a ruleset shows, and at no other. Plain Python, no loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from secgroups.controller.errors import LimitError
from secgroups.controller.model import Change, Group, Rule, Server, groups_with_other_members
from secgroups.controller.rulesets import EffectiveRuleset

WATCHERS_MAX = 10_000

# What a ruleset is made of: a server, the rules of a group, or a group that is named as remote (its name and members).
_Topic = tuple[str, str]


class Watcher:
    """One who watches one server. It is told that something changed, never what: there is no queue."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._topics: frozenset[_Topic] = frozenset()


class Watchers:
    """All watchers by what they show; a change costs what it touches. ``closed`` once no one may watch any more."""

    def __init__(self, watchers_max: int = WATCHERS_MAX) -> None:
        self._watchers_max = watchers_max
        self._by_topic: dict[_Topic, set[Watcher]] = {}
        self._count = 0
        self.closed = False

    def __len__(self) -> int:
        return self._count

    def add(self, wake: Callable[[], None]) -> Watcher:
        """Return a new watcher that shows nothing yet. LimitError if there are too many."""
        if self._count >= self._watchers_max:
            most = self._watchers_max
            raise LimitError("watchers", f"{most} watchers are open, the most allowed is {most}", limit="watchers_max", most=most)
        self._count += 1
        return Watcher(wake)

    def show(self, watcher: Watcher, ruleset: EffectiveRuleset) -> None:
        """Note what a watcher shows now: whatever changes of that wakes it."""
        self._index(watcher, frozenset(_topics_of(ruleset)))

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        self._index(watcher, frozenset())
        self._count -= 1

    def changed(self, changes: Sequence[Change]) -> None:
        """Wake whoever shows what ``changes`` are about."""
        if not self._by_topic:
            return
        woken: set[Watcher] = set()
        for change in changes:
            for topic in _topics_touched(change):
                woken.update(self._by_topic.get(topic, ()))
        for watcher in woken:
            watcher.wake()

    def close(self) -> None:
        """Wake everybody; ``closed`` tells them to end."""
        self.closed = True
        for watcher in {watcher for watchers in self._by_topic.values() for watcher in watchers}:
            watcher.wake()

    def _index(self, watcher: Watcher, topics: frozenset[_Topic]) -> None:
        before = watcher._topics
        for topic in before - topics:
            watchers = self._by_topic[topic]
            watchers.discard(watcher)
            if not watchers:
                del self._by_topic[topic]
        for topic in topics - before:
            self._by_topic.setdefault(topic, set()).add(watcher)
        watcher._topics = topics


def _topics_of(ruleset: EffectiveRuleset) -> Iterable[_Topic]:
    yield "server", ruleset.server.key
    for group_id in ruleset.server.group_ids:
        yield "rules", group_id
    for remote in ruleset.remote_groups:
        yield "remote", remote.group.id


def _topics_touched(change: Change) -> Iterable[_Topic]:
    before, after = change.before, change.after
    thing = after or before
    if isinstance(thing, Rule):
        yield "rules", thing.group_id
    elif isinstance(thing, Group):
        yield "rules", thing.id
        yield "remote", thing.id
    elif isinstance(thing, Server):
        yield "server", thing.key
        old, new = (value if isinstance(value, Server) else None for value in (before, after))
        for group_id in groups_with_other_members(old, new):
            yield "remote", group_id
