"""One agent's stream: what it was sent, what it has yet to be told, and what it has not acknowledged.

State, not events: there is no queue. A change marks the objects that it touched; the message is made of their newest state when
the window has room, against the versions that this stream was sent. All that is marked goes in one step, which the agent applies
whole, so its ruleset is always one that the controller had. Memory is bounded by the agent's own objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secgroups.controller.chunks import CHUNK_BYTES_MAX, Piece, cut, in_order
from secgroups.controller.digest import HeldVersions
from secgroups.controller.errors import InvalidError
from secgroups.controller.questions import Questions
from secgroups.controller.stream_messages import (
    Ack,
    AddressSetPatch,
    Bookmark,
    GoAway,
    Hello,
    Kind,
    ObjectKey,
    Outbound,
    PreviewRequest,
    Rejected,
    SyncMode,
    SyncPoint,
    Update,
    Welcome,
)

if TYPE_CHECKING:
    from secgroups.controller.interest import Interest
    from secgroups.controller.set_history import SetHistory
    from secgroups.controller.state import State
    from secgroups.controller.stream_objects import StreamObjects

MESSAGES_MAX = 16
BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where channels take from what they send."""

    state: State
    store_epoch: str
    interest: Interest
    objects: StreamObjects
    history: SetHistory


@dataclass(frozen=True, slots=True)
class Since:
    """When an object became different from what the agent has."""

    revision: int
    commit_us: int


@dataclass(slots=True, kw_only=True)
class _Step:
    """What was sent to be applied whole. ``nonce`` is that of its last message, ``keys`` are the objects that it is about."""

    nonce: int
    messages: int
    size_bytes: int
    since_revision: int
    revision: int
    sent_us: int
    keys: set[ObjectKey] = field(default_factory=set)


class AgentChannel:
    """The sending side of one stream, without the stream: messages come out, acknowledgements go in. One at a time; never blocks.

    ``wake`` is called whenever ``next_messages`` may have something to say.
    """

    def __init__(
        self,
        hello: Hello,
        source: Source,
        *,
        wake: Callable[[], None],
        progressed: Callable[[AgentChannel, int], None],
        in_force_revision: int = 0,
        rejected: Mapping[ObjectKey, Rejected] | None = None,
    ) -> None:
        self.hello = hello
        self.rejected = dict(rejected or {})
        self.applied_revision = in_force_revision
        self._source = source
        self._wake = wake
        self._progressed = progressed
        self._messages_max = min(hello.window_messages or MESSAGES_MAX, MESSAGES_MAX)
        self._bytes_max = min(hello.window_bytes or BYTES_MAX, BYTES_MAX)
        self._held = HeldVersions()
        self._dirty: dict[ObjectKey, Since] = {}
        self._dirty_since = 0  # The oldest of them.
        self._in_flight: deque[_Step] = deque()
        self._nonce = 0
        self._welcomed = False
        self._snapshot_since = in_force_revision + 1
        self._verified_nonce = 0
        self._ending: GoAway | None = None
        self.ended = False
        self.questions = Questions(wake)

    @property
    def agent_id(self) -> str:
        return self.hello.agent_id

    @property
    def pending_since(self) -> int | None:
        """The oldest revision that touched this agent and is not in force on it; None if it is up to date."""
        if not self._welcomed:
            return self._snapshot_since
        under_way = [step.since_revision for step in self._in_flight]
        return min([*under_way, self._dirty_since] if self._dirty else under_way, default=None)

    @property
    def oldest_unacknowledged_us(self) -> int | None:
        """When the oldest step that was not acknowledged was sent, by the clock of ``next_messages``."""
        return self._in_flight[0].sent_us if self._in_flight else None

    @property
    def backlog(self) -> int:
        """How many objects are marked or under way: the memory that a slow agent costs."""
        return len(self._dirty) + sum(len(step.keys) for step in self._in_flight)

    def will_hold(self, key: ObjectKey) -> bool:
        """Whether the agent holds an object, or will when what is under way arrives."""
        return key in (self._held if self._welcomed else self.hello.held)

    def is_pending(self, key: ObjectKey) -> bool:
        """Whether the agent has not yet acknowledged the newest of an object."""
        return key in self._dirty or any(key in step.keys for step in self._in_flight)

    def mark(self, key: ObjectKey, since: Since) -> None:
        """Note that an object may differ from what the agent was sent."""
        self._dirty_since = min(self._dirty_since, since.revision) if self._dirty else since.revision
        self._dirty.setdefault(key, since)

    def wake(self) -> None:
        """Say that there may be something to send."""
        self._wake()

    def end(self, reason: str, reconnect_after_s: float) -> None:
        """End the stream with a GoAway. Nothing else is sent any more; the first reason counts."""
        if self._ending is None:
            self._ending = GoAway(reason=reason, reconnect_after_s=reconnect_after_s)
        self._wake()

    @property
    def ending_reason(self) -> str:
        """Why the stream ends; empty while it does not."""
        return self._ending.reason if self._ending else ""

    @property
    def has_news(self) -> bool:
        """Whether ``next_messages`` has something to say now."""
        if self._ending is not None or not self._welcomed:
            return True
        return self.questions.has_unsent or bool(self._dirty and self._window_is_open)

    def next_messages(self, now_us: int, clock_us: int | None = None) -> list[Outbound]:
        """Return what is to be sent now, in order; empty if there is nothing or the window is full.

        ``now_us`` is the time of day, as of commits; ``clock_us`` one that nobody sets, for ``oldest_unacknowledged_us``, the same
        unless given.
        """
        clock_us = now_us if clock_us is None else clock_us
        if self._ending is not None:
            self.ended = True
            return [self._ending]
        if not self._welcomed:
            return self._opening(clock_us)
        messages = self._step(now_us, clock_us) if self._dirty and self._window_is_open else []
        # After the updates: an agent counts on top of what it was sent.
        return messages + self._asked()

    def heartbeat(self, clock_us: int) -> list[Outbound]:
        """Return what is said each heartbeat: that nothing is new, and after updates what the agent must hold by now."""
        if not self._welcomed or self._dirty or self._in_flight or self._ending is not None:
            return []
        revision = self._source.state.revision
        if self._verified_nonce == self._nonce:
            return [Bookmark(revision=revision)]
        point = self._sync_point(revision, snapshot_end=False)
        self._in_flight.append(
            _Step(nonce=point.nonce, messages=1, size_bytes=0, since_revision=revision, revision=revision, sent_us=clock_us)
        )
        return [point]

    def acknowledge(self, ack: Ack, now_us: int) -> None:
        """Take note of what the agent has in force. InvalidError if it speaks of what it was not sent."""
        if ack.applied_revision > self._source.state.revision:
            raise InvalidError("ack.applied_revision", f"is {ack.applied_revision}, beyond the controller's revision")
        if ack.nonce and all(step.nonce != ack.nonce for step in self._in_flight):
            raise InvalidError("ack.nonce", f"is {ack.nonce}, which ends nothing that waits for an acknowledgement")
        for number, rejected in enumerate(ack.rejected):
            self._check_rejected(rejected, f"ack.rejected[{number}]")
        self.applied_revision = ack.applied_revision
        while self._in_flight and self._in_flight[0].nonce <= ack.nonce:
            for key in self._in_flight.popleft().keys:
                self.rejected.pop(key, None)
        self.rejected |= {rejected.key: rejected for rejected in ack.rejected}
        self.rejected = {key: rejected for key, rejected in self.rejected.items() if key in self._held}
        self._progressed(self, now_us)
        if self._dirty:
            self._wake()

    def _check_rejected(self, rejected: Rejected, field: str) -> None:
        if rejected.code == 0:
            raise InvalidError(f"{field}.code", "is OK, which rejects nothing")
        if rejected.key not in self._held and all(rejected.key not in step.keys for step in self._in_flight):
            raise InvalidError(f"{field}.object", f"{rejected.key[0].word} {rejected.key[1]} was not sent on this stream")

    @property
    def _window_is_open(self) -> bool:
        return (
            sum(step.messages for step in self._in_flight) < self._messages_max
            and sum(step.size_bytes for step in self._in_flight) < self._bytes_max
        )

    def _opening(self, clock_us: int) -> list[Outbound]:
        """Welcome and a snapshot."""
        self._welcomed = True
        self._dirty.clear()
        source = self._source
        revision = source.state.revision
        pieces = [piece for key in source.interest.span(self.agent_id) for piece in self._to_send(key)]
        step = self._begin_step(self._snapshot_since, clock_us)
        updates = self._updates(step, pieces, oldest_commit_us=0, last_has_more=True)
        point = self._sync_point(revision, snapshot_end=True)
        step.nonce = point.nonce
        step.messages += 1
        welcome = Welcome(store_epoch=source.store_epoch, revision=revision, mode=SyncMode.SNAPSHOT)
        return [welcome, *updates, point]

    def _step(self, now_us: int, clock_us: int) -> list[Outbound]:
        """Everything that is marked, as one step."""
        oldest_commit_us = min(since.commit_us for since in self._dirty.values())
        keys, self._dirty = list(self._dirty), {}
        pieces = [piece for key in keys for piece in self._to_send(key)]
        if not pieces:
            self._progressed(self, now_us)
            return []
        step = self._begin_step(self._dirty_since, clock_us)
        return list(self._updates(step, pieces, oldest_commit_us=oldest_commit_us, last_has_more=False))

    def _begin_step(self, since_revision: int, clock_us: int) -> _Step:
        revision = self._source.state.revision
        step = _Step(nonce=0, messages=0, size_bytes=0, since_revision=since_revision, revision=revision, sent_us=clock_us)
        self._in_flight.append(step)
        return step

    def _asked(self) -> list[Outbound]:
        """The questions that were not sent yet, made for what this agent holds."""
        asked: list[Outbound] = []
        for question in self.questions.take_unsent():
            update = question.prospect.find_update(self.agent_id, self._held)
            if update is None:
                self.questions.fail(question.id, "too much to ask in one message")
            else:
                asked.append(PreviewRequest(id=question.id, update=update, timeout_s=question.timeout_s))
        return asked

    def _to_send(self, key: ObjectKey) -> Iterable[Piece]:
        """Yield what takes an object from what was sent to what is to be held: nothing, a patch, a removal, the object."""
        source, held = self._source, self._held.find(key)
        version = source.objects.find_version(key) if source.interest.wants(self.agent_id, key) else None
        if version == held:
            return
        if version is None:
            self._held.drop(key)
            yield key
            return
        self._held.put(key, version)
        made = source.objects.get(key, version)
        patch = self._find_patch(key, held, version)
        yield patch if patch is not None and patch.size_bytes < made.size_bytes else made

    def _find_patch(self, key: ObjectKey, held: int | None, version: int) -> AddressSetPatch | None:
        # What was rejected is not what the agent has: it gets the next version whole. The same goes for what is under way.
        if key[0] is not Kind.SET or held is None or key in self.rejected:
            return None
        return self._source.history.find_patch(key[1], held, version)

    def _updates(self, step: _Step, pieces: list[Piece], *, oldest_commit_us: int, last_has_more: bool) -> list[Update]:
        step.keys |= {piece if isinstance(piece, tuple) else piece.key for piece in pieces}
        chunks = cut(in_order(pieces), CHUNK_BYTES_MAX)
        updates = []
        for number, chunk in enumerate(chunks, start=1):
            self._nonce += 1
            updates.append(
                Update(
                    nonce=self._nonce,
                    revision=step.revision,
                    more=last_has_more or number < len(chunks),
                    sets=tuple(chunk.sets),
                    set_patches=tuple(chunk.set_patches),
                    groups=tuple(chunk.groups),
                    servers=tuple(chunk.servers),
                    removed_servers=tuple(chunk.removed_servers),
                    removed_groups=tuple(chunk.removed_groups),
                    removed_sets=tuple(chunk.removed_sets),
                    oldest_commit_us=oldest_commit_us,
                )
            )
            step.messages += 1
            step.size_bytes += chunk.size_bytes
        step.nonce = self._nonce
        return updates

    def _sync_point(self, revision: int, *, snapshot_end: bool) -> SyncPoint:
        self._nonce += 1
        self._verified_nonce = self._nonce
        return SyncPoint(nonce=self._nonce, revision=revision, state_digest=self._held.digest, snapshot_end=snapshot_end)
