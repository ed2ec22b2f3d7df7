"""One agent's stream: what it was sent, what it has yet to be told, and what it has not acknowledged.

State, not events: there is no queue. A change marks the objects that it touched; each message is made of their newest state when
the window has room, against the versions that this stream was sent. What is marked goes in one step, which the agent applies whole.

A step may be larger than the window. While it goes on only keys are remembered; what changes meanwhile is marked and sent again in
the same step, and the step ends with a message that leaves nothing marked. So its end is made at one instant, the ruleset of the
agent is always one that the controller had, and memory is bounded by the agent's own objects.

Every step ends, however much changes meanwhile: what it began with goes first, object by object, then the window may open
``CATCH_UP_MAX`` times for what changed, and then all the rest is sent whatever the window.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from secgroups.controller.chunks import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunk, Piece, parts_of
from secgroups.controller.digest import HeldVersions
from secgroups.controller.errors import InvalidError
from secgroups.controller.questions import Questions
from secgroups.controller.ready_steps import KEYS_MAX, ReadyStep, Start
from secgroups.controller.resume import Marks, Since, Source, in_order, opening
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
from secgroups.controller.window import Window

# How often the window may open for what changed while a step was sent.
CATCH_UP_MAX = 8


@dataclass(slots=True, kw_only=True)
class _Step:
    """What is sent to be applied whole. ``keys`` are the objects that it is about.

    ``nonce`` is that of the message that ends it, 0 while it goes on, ``begun_nonce`` that of the last one before it.
    ``since_revision`` is the oldest change in it, None if it only verifies. ``keys_left`` counts the objects that it began with and
    that had no turn yet, ``catch_ups`` how often it went on after that.
    """

    begun_nonce: int
    since_revision: int | None
    oldest_commit_us: int = 0
    keys_left: int = 0
    catch_ups: int = 0
    begins_stream: bool = False
    nonce: int = 0
    keys: set[ObjectKey] = field(default_factory=set)


class AgentChannel:
    """The sending side of one stream, without the stream: messages come out, acknowledgements go in. One at a time; never blocks.

    ``wake`` is called whenever ``next_messages`` may have something to say. What was to be in force by ``in_force_revision`` is, as
    far as the agent says; as far as is known here that is true of what was before ``unknown_since``.
    """

    def __init__(
        self,
        hello: Hello,
        source: Source,
        *,
        wake: Callable[[], None],
        progressed: Callable[[AgentChannel, int], None],
        in_force_revision: int = 0,
        unknown_since: int = 1,
        rejected: Mapping[ObjectKey, Rejected] | None = None,
    ) -> None:
        self.agent_id = hello.agent_id
        self.hello = hello
        self.rejected = dict(rejected or {})
        self.applied_revision = in_force_revision
        self.mode = SyncMode.SNAPSHOT
        self.mode_reason = ""  # Why it is no better one.
        self._source = source
        self._wake = wake
        self._progressed = progressed
        self._unknown_since = unknown_since
        self._window = Window(hello.window_messages, hello.window_bytes)
        self._held = HeldVersions()
        self._marked: Marks = OrderedDict()  # What may differ from what was sent.
        self._marked_since = 0  # The oldest of them.
        self._rest: deque[Piece] | None = None  # What is left of an object that is larger than a message.
        self._open: _Step | None = None
        self._in_flight: list[_Step] = []  # No more than the window has messages.
        self._nonce = 0
        self._progress_us = 0  # When something was last received.
        self._sent_us = 0  # When something was sent while nothing else was under way.
        self._welcomed = False
        self._begun = False  # Whether the first step is in force.
        self._verified_nonce = 0
        self._ending: GoAway | None = None
        self.ended = False
        self.questions = Questions(wake)

    @property
    def has_begun(self) -> bool:
        """Whether the first step of the stream is in force."""
        return self._begun

    @property
    def pending_since(self) -> int | None:
        """The oldest revision that touched this agent and is not in force on it; None if it is up to date."""
        if not self._welcomed:
            return self._unknown_since
        if not self._in_flight and self._open is None:
            return self._marked_since if self._marked else None
        under_way = [step.since_revision for step in self._steps if step.since_revision is not None]
        return min([*under_way, self._marked_since] if self._marked else under_way, default=None)

    @property
    def oldest_unacknowledged_us(self) -> int | None:
        """Since when nothing of what was sent was received or applied, by the clock of ``next_messages``; None if nothing waits."""
        if self._window.is_empty and not self._in_flight:
            return None
        return max(self._sent_us, self._progress_us)

    @property
    def backlog(self) -> int:
        """How many objects are marked or under way: the memory that a slow agent costs."""
        return len(self._marked) + sum(len(step.keys) for step in self._steps)

    def will_hold(self, key: ObjectKey) -> bool:
        """Whether the agent holds an object, or will when what is under way arrives."""
        # Until the first step is in force it has what it came with.
        return key in self._held or (not self._begun and key in self.hello.held)

    def is_pending(self, key: ObjectKey) -> bool:
        """Whether the agent has not yet acknowledged the newest of an object."""
        return key in self._marked or self._is_under_way(key)

    def _is_under_way(self, key: ObjectKey) -> bool:
        return any(key in step.keys for step in self._steps)

    def mark(self, key: ObjectKey, since: Since) -> bool:
        """Note that an object may differ from what the agent was sent; whether it has to be woken for that. See ``MarkedAgents``.

        Who has something marked is awake, or waits for its window or its rest and wakes by itself.
        """
        was_idle = not self._marked
        if was_idle or since.revision < self._marked_since:
            self._marked_since = since.revision
        # The oldest change counts, which is not always the first to be marked: old agents let go at the revision of a move.
        held = self._marked.setdefault(key, since)
        if since.revision < held.revision:
            self._marked[key] = since
        return was_idle

    def forget_marks(self) -> None:
        """Forget what is marked: the stream begins, or another one takes its place."""
        self._source.marked.discard(self._marked, self.agent_id)
        self._marked.clear()

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
        return self._can_go_on or (self.questions.has_unsent and self._open is None)

    def next_messages(self, now_us: int, clock_us: int | None = None) -> list[Outbound]:
        """Return what is to be sent now, in order; empty if there is nothing or the window is full.

        ``now_us`` is the time of day, as of commits; ``clock_us`` one that nobody sets, for ``oldest_unacknowledged_us``, the same
        unless given.
        """
        clock_us = now_us if clock_us is None else clock_us
        if self._ending is not None:
            self.ended = True
            return [self._ending]
        messages: list[Outbound] = [] if self._welcomed else [self._welcome()]
        while self._can_go_on:
            messages += self._go_on(now_us, clock_us)
        # After the updates, and not within a step: an agent counts on top of what it was sent and has applied.
        if self._open is None and self.questions.has_unsent:
            messages += self._asked()
        return messages

    def heartbeat(self, clock_us: int) -> list[Outbound]:
        """Return what is said each heartbeat: that nothing is new, and after updates what the agent must hold by now."""
        busy = self._marked or self._open is not None or self._in_flight
        if not self._welcomed or busy or self._ending is not None:
            return []
        if self._verified_nonce == self._nonce:
            return [Bookmark(revision=self._source.state.revision)]
        step = _Step(begun_nonce=self._nonce, since_revision=None)
        return [self._sync_point(step, clock_us)]

    def acknowledge(self, ack: Ack, now_us: int, clock_us: int | None = None) -> None:
        """Take note of what the agent has received and has in force. InvalidError if it speaks of what it was not sent.

        The clocks are those of ``next_messages``.
        """
        self._check(ack)
        if self._window.received(max(ack.nonce, ack.received_nonce)) or ack.nonce:
            self._progress_us = now_us if clock_us is None else clock_us
        if _speaks_of_what_is_in_force(ack):
            self._take_in_force(ack)
            self._progressed(self, now_us)
        if self.has_news:
            self._wake()

    def _check(self, ack: Ack) -> None:
        if _speaks_of_what_is_in_force(ack) and ack.applied_revision > self._source.state.revision:
            raise InvalidError("ack.applied_revision", f"is {ack.applied_revision}, beyond the controller's revision")
        if ack.nonce and not any(step.nonce == ack.nonce for step in self._in_flight):
            raise InvalidError("ack.nonce", f"is {ack.nonce}, which ends nothing that waits for an acknowledgement")
        if ack.received_nonce > self._nonce:
            raise InvalidError("ack.received_nonce", f"is {ack.received_nonce}, the last that was sent is {self._nonce}")
        for number, rejected in enumerate(ack.rejected):
            self._check_rejected(rejected, f"ack.rejected[{number}]")

    def _check_rejected(self, rejected: Rejected, field: str) -> None:
        if rejected.code == 0:
            raise InvalidError(f"{field}.code", "is OK, which rejects nothing")
        if rejected.key not in self._held and not self._is_under_way(rejected.key):
            raise InvalidError(f"{field}.object", f"{rejected.key[0].word} {rejected.key[1]} was not sent on this stream")

    def _take_in_force(self, ack: Ack) -> None:
        self.applied_revision = ack.applied_revision
        rejected = self.rejected
        while self._in_flight and self._in_flight[0].nonce <= ack.nonce:
            step = self._in_flight.pop(0)
            if step.begins_stream:
                # The agent names all that it rejects, whatever it was heard to reject before.
                self._begun, rejected = True, {}
                self.hello = replace(self.hello, held={})
            if rejected:
                rejected = {key: value for key, value in rejected.items() if key not in step.keys}
        if not rejected and not ack.rejected:
            if self.rejected:
                self.rejected = {}
            return
        rejected = rejected | {each.key: each for each in ack.rejected}
        # One that is to be removed counts until it is: the agent enforces its last good version meanwhile.
        self.rejected = {key: value for key, value in rejected.items() if key in self._held or self._is_under_way(key)}

    # Steps.

    @property
    def _steps(self) -> list[_Step]:
        return [*self._in_flight] if self._open is None else [*self._in_flight, self._open]

    @property
    def _can_go_on(self) -> bool:
        """Whether there is something to send, and room for it."""
        if self._open is None:
            # Steps that nobody applies must not add up, whatever was received of them.
            return bool(self._marked) and self._window.is_open and len(self._in_flight) < self._window.messages_max
        return self._window.is_open or self._open.catch_ups > CATCH_UP_MAX

    def _welcome(self) -> Welcome:
        """Begin the first step, which ends with a sync point whatever the mode."""
        source = self._source
        begin = opening(self.hello, source)
        self.mode, self.mode_reason = begin.mode, begin.reason
        self.forget_marks()
        self._held, self._marked = begin.held, begin.marked
        self._marked_since = min([self._unknown_since, *(since.revision for since in self._marked.values())])
        self._open = self._begin_step()
        self._open.begins_stream = True
        # Until it is acknowledged, what the agent rejects is not known.
        self._open.since_revision = self._marked_since
        self._welcomed = True
        return Welcome(
            store_epoch=source.lineage.store_epoch,
            timeline_id=source.lineage.timeline_id,
            revision=source.state.revision,
            mode=begin.mode,
        )

    @property
    def _oldest_commit_us(self) -> int:
        return min([since.commit_us for since in self._marked.values()], default=0)

    @property
    def _bytes_max(self) -> int:
        """What a message holds."""
        return min(CHUNK_BYTES_MAX, max(CHUNK_BYTES_MIN, self._window.bytes_max))

    def _begin_step(self) -> _Step:
        self._marked = in_order(self._marked, self.agent_id, self._source.interest)
        return _Step(
            begun_nonce=self._nonce,
            since_revision=self._marked_since,
            oldest_commit_us=self._oldest_commit_us,
            keys_left=len(self._marked),
        )

    def _go_on(self, now_us: int, clock_us: int) -> list[Outbound]:
        """The next message of a step, and all that ends it if nothing is marked then."""
        step, start = self._open, None
        if step is None:
            start = self._find_start()
            ready = self._source.ready_steps.find(start, self._source.state.revision) if start is not None else None
            if ready is not None and ready.chunk.size_bytes <= self._bytes_max:
                return [self._take_ready(ready, clock_us)]
            step = self._open = self._begin_step()
        # How many messages a single object takes is not counted.
        if not step.keys_left and not self._rest:
            step.catch_ups += 1
        chunk = self._next_chunk(step)
        is_last = not self._marked and not self._rest
        messages: list[Outbound] = []
        if chunk.size_bytes or (is_last and not step.begins_stream and self._nonce > step.begun_nonce):
            self._send(chunk.size_bytes, clock_us)
            more = not is_last or step.begins_stream
            messages.append(chunk.update(self._nonce, self._source.state.revision, step.oldest_commit_us, more=more))
        if not is_last:
            return messages
        self._open = None
        if step.begins_stream:
            # It takes no room of its own: were it to wait for the next opening of the window, so would what changed until then.
            messages.append(self._sync_point(step, clock_us))
        elif messages:
            self._end_step(step)
            if start is not None:
                versions = {key: version for key in start[0] if (version := self._held.find(key)) is not None}
                ready = ReadyStep(versions=versions, keys=step.keys, chunk=chunk)
                self._source.ready_steps.keep(start, self._source.state.revision, ready)
        else:
            # What was marked came and went.
            self._progressed(self, now_us)
        return messages

    def _find_start(self) -> Start | None:
        """Return what is marked and was sent, if other agents may take the very same step."""
        if len(self._marked) > KEYS_MAX or self.rejected or not self._source.interest.wants_all(self.agent_id, self._marked):
            return None
        return tuple(self._marked), self._held.find_all(self._marked)

    def _take_ready(self, ready: ReadyStep, clock_us: int) -> Update:
        """Send a step that was made for another agent."""
        step = _Step(begun_nonce=self._nonce, since_revision=self._marked_since, oldest_commit_us=self._oldest_commit_us)
        step.keys = ready.keys
        self.forget_marks()
        for key, version in ready.versions.items():
            self._held.put(key, version)
        self._send(ready.chunk.size_bytes, clock_us)
        self._end_step(step)
        return ready.chunk.update(self._nonce, self._source.state.revision, step.oldest_commit_us, more=False)

    def _end_step(self, step: _Step) -> None:
        step.nonce = self._nonce
        self._in_flight.append(step)
        if not self._marked:
            # What held thousands of marks stays as large when they are gone.
            self._marked = OrderedDict()

    def _next_chunk(self, step: _Step) -> Chunk:
        """Take objects, those that were marked first, until a message is full or nothing is marked."""
        bytes_max = self._bytes_max
        chunk = Chunk()
        while self._fill_from_rest(chunk, bytes_max) and self._marked:
            key = next(iter(self._marked))
            version, piece = self._to_send(key)
            parts = list(parts_of(piece, bytes_max)) if piece is not None else []
            if parts and not chunk.has_room(parts[0], bytes_max):
                # It is looked at again for the next message: by then it may be another, or none of this agent's.
                break
            self._take(step, key, version)
            if parts:
                step.keys.add(key)
                self._rest = deque(parts)
        return chunk

    def _fill_from_rest(self, chunk: Chunk, bytes_max: int) -> bool:
        """Take what is left of an object that needs several messages; whether nothing is left of it then."""
        while self._rest and chunk.has_room(self._rest[0], bytes_max):
            chunk.add(self._rest.popleft())
        if self._rest:
            return False
        self._rest = None
        return True

    def _take(self, step: _Step, key: ObjectKey, version: int | None) -> None:
        """Note that an object is sent, or needs no sending."""
        since = self._marked.pop(key)
        self._source.marked.discard((key,), self.agent_id)
        step.keys_left = max(0, step.keys_left - 1)
        step.since_revision = since.revision if step.since_revision is None else min(step.since_revision, since.revision)
        if version is None:
            self._held.drop(key)
        elif version != self._held.find(key):
            self._held.put(key, version)

    def _sync_point(self, step: _Step, clock_us: int) -> SyncPoint:
        self._send(0, clock_us)
        self._verified_nonce = self._nonce
        self._end_step(step)
        return SyncPoint(
            nonce=self._nonce,
            revision=self._source.state.revision,
            state_digest=self._held.digest,
            snapshot_end=step.begins_stream and self.mode is SyncMode.SNAPSHOT,
        )

    def _send(self, size_bytes: int, clock_us: int) -> None:
        if self._window.is_empty and not self._in_flight:
            self._sent_us = clock_us
        self._nonce += 1
        self._window.sent(self._nonce, size_bytes)

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

    def _to_send(self, key: ObjectKey) -> tuple[int | None, Piece | None]:
        """Return the version that an agent is to hold, and what takes it there: the object, a patch, a removal, or nothing."""
        source, held = self._source, self._held.find(key)
        version = source.objects.find_version(key) if source.interest.wants(self.agent_id, key) else None
        if version == held:
            return version, None
        if version is None:
            return None, key
        patch = self._find_patch(key, held, version)
        if patch is not None and patch.size_bytes <= source.objects.set_bytes_min(key[1]):
            # The set itself, which may have ten thousand members, need not be made.
            return version, patch
        made = source.objects.get(key, version)
        return version, patch if patch is not None and patch.size_bytes < made.size_bytes else made

    def _find_patch(self, key: ObjectKey, held: int | None, version: int) -> AddressSetPatch | None:
        # What was rejected is not what the agent has: it gets the next version whole.
        if key[0] is not Kind.SET or held is None or key in self.rejected:
            return None
        return self._source.history.find_patch(key[1], held, version)


def _speaks_of_what_is_in_force(ack: Ack) -> bool:
    """Whether it is more than a receipt."""
    return bool(ack.nonce) or not ack.received_nonce
