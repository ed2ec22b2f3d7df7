"""Where a mutation becomes durable, then visible, then acknowledged: the writer thread, the state and the publisher in one place.

    caller ── change(operation) ──► queue ──► writer thread: one commit for all that wait
                                                    │ on the event loop, in order of revision
    caller ◄── outcome ◄── publisher told ◄── state applied

Nothing here knows SQL, protobuf or gRPC.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from secgroups.controller.cut_count import PREVIEW_TIMEOUT_S, count_cut
from secgroups.controller.errors import StoreFileError, StoreUnavailableError
from secgroups.controller.model import Change, ObjectKind
from secgroups.controller.preview import Preview, preview
from secgroups.controller.prospect import Prospect, takes_away
from secgroups.controller.publisher import Publisher
from secgroups.controller.returns import Returns
from secgroups.controller.state import State
from secgroups.controller.store.interface import ChangePage, Committed, Pending, Place, RequestKey, Store, Transaction
from secgroups.controller.store_writer import Work, Writer, WriterThread

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Mutations that wait at most; beyond it a caller is told to come back rather than to wait for seconds.
WAITING_MAX = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[T]):
    """What became of a mutation. ``value`` is None exactly when ``replayed`` is the answer of the first time.

    ``preview`` is that of a mutation which was only tried, ``prospect`` what agents are asked about it if it takes something away.
    """

    value: T | None
    revision: int
    preview: Preview | None = None
    prospect: Prospect | None = None
    replayed: bytes | None = None


Listener = Callable[[Sequence[Change]], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A mutation and the caller who waits for it."""

    pending: Pending[Any]
    outcome: asyncio.Future[Outcome[Any]]


class Core:
    """The store with its state and those who listen to it. Made on a running event loop, used from that loop only."""

    def __init__(
        self,
        store: Store,
        *,
        preview_timeout_s: float = PREVIEW_TIMEOUT_S,
        start_writer: Callable[[Work[_Waiting]], Writer[_Waiting]] = WriterThread,
    ) -> None:
        """Read everything from ``store``, which is the core's own from now on. StoreFileError if it can't be read.

        A preview waits for the answers of agents ``preview_timeout_s`` at most. ``start_writer`` makes what commits.
        """
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.store_epoch = store.store_epoch
        self.controller_id = str(uuid.uuid4())
        try:
            contents = store.load()
            self.state = State(contents)
            store.begin_timeline()
        except StoreFileError:
            store.close()
            raise
        # As of now: whoever lets people in keeps them up.
        self.credentials_at_start = contents.credentials
        self.publisher = Publisher(self.state, store)
        self.returns = Returns()
        self._listeners: list[Listener] = [self.publisher.changed]
        self._waiting = 0
        self._closed = False
        self._store_failed = False
        self._preview_timeout_s = preview_timeout_s
        self._writer = start_writer(self._work)

    @property
    def waiting(self) -> int:
        """How many mutations wait for the disk."""
        return self._waiting

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with all changes, in order, right after the state has them; return how to stop that.

        The changes of one revision come together; those of several do when they were committed together.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def compacted_revision(self) -> int:
        """Of what happened up to and with it the change log tells nothing any more."""
        return self._store.compacted_revision

    async def read_log(self, revision: int, limit: int) -> ChangePage:
        """Return what happened after a revision, as the store says. StoreUnavailableError."""
        return await asyncio.to_thread(self._store.changes_since, revision, limit)

    async def read_log_back(
        self, project: str, before: Place | None, limit: int, without: Collection[ObjectKind] = ()
    ) -> list[tuple[Change, Place]]:
        """Return what happened last before a place in the log, as the store says. StoreUnavailableError."""
        return await asyncio.to_thread(self._store.changes_before, project, before, limit, without)

    async def read_log_of(self, key: str, limit: int) -> list[Change]:
        """Return what happened to the objects with a key, as the store says. StoreUnavailableError."""
        return await asyncio.to_thread(self._store.changes_of, key, limit)

    async def change(
        self,
        operation: Callable[[Transaction], T],
        *,
        validate_only: bool = False,
        request: RequestKey | None = None,
        encode: Callable[[T, int], bytes] | None = None,
        actor: str = "",
        urgent: bool = False,
    ) -> Outcome[T]:
        """Run ``operation`` and return when its commit is on disk, in the state and told to all listeners.

        Raises what the operation raises, and StoreUnavailableError if the store can't be written or too many mutations wait.
        ``encode(value, revision)`` makes the answer that is kept with ``request``. A caller that is cancelled takes nothing back
        that has begun. With ``validate_only`` nothing is committed, and the agents that would lose something are asked how many of
        their flows that would cut; only this caller waits for them. What is ``urgent`` waits though too many others do: its callers
        see to it that there is one at a time.
        """
        if self._closed:
            raise StoreUnavailableError("the controller is stopping; try again")
        if self._waiting >= WAITING_MAX and not urgent:
            raise StoreUnavailableError(f"{WAITING_MAX} changes are waiting for the disk, the most allowed; try again later")
        outcome: asyncio.Future[Outcome[T]] = self._loop.create_future()
        self._waiting += 1
        pending = Pending(operation, validate_only=validate_only, request=request, encode=encode, actor=actor)
        self._writer.put(_Waiting(pending, outcome))
        answer = await outcome
        if answer.preview is None or answer.prospect is None:
            return answer
        cut = await count_cut(self.publisher, answer.prospect, self._preview_timeout_s)
        return replace(answer, preview=replace(answer.preview, flows_cut=cut))

    def _work(self, batch: list[_Waiting]) -> Callable[[], None]:
        """In the writer: commit a batch; return what takes over the results on the loop."""
        # Nobody waits any more for what was cancelled before its turn.
        live = [waiting for waiting in batch if not waiting.outcome.cancelled()]
        results = self._commit([waiting.pending for waiting in live])
        return partial(self._publish, live, results, len(batch))

    def _commit(self, batch: Sequence[Pending[Any]]) -> list[Committed[Any] | Exception]:
        try:
            results = self._store.commit(batch)
        except Exception as error:
            # The writer must outlive a bug of one commit.
            log.exception("commit_failed", mutations=len(batch))
            return [error for _ in batch]
        failed = next((result for result in results if isinstance(result, StoreUnavailableError)), None)
        if results and self._store_failed != (failed is not None):
            self._store_failed = failed is not None
            log.error("store_write_failed", error=str(failed)) if failed else log.info("store_write_recovered")
        return results

    def _publish(self, live: Sequence[_Waiting], results: Sequence[Committed[Any] | Exception], taken: int) -> None:
        """On the loop: take over what was committed, in order of revision, tell of all of it at once, then answer."""
        self._waiting -= taken
        changes: list[Change] = []
        answers: list[Outcome[Any] | Exception] = []
        for waiting, result in zip(live, results, strict=True):
            try:
                answers.append(result if isinstance(result, Exception) else self._take_over(waiting.pending, result))
            except Exception as error:
                log.exception("outcome_failed", revision=self.state.revision)
                answers.append(error)
            if not isinstance(result, Exception) and not waiting.pending.validate_only:
                changes += result.changes
        if changes:
            self._tell(changes)
        for waiting, answer in zip(live, answers, strict=True):
            if waiting.outcome.cancelled():
                continue
            if isinstance(answer, Exception):
                waiting.outcome.set_exception(answer)
            else:
                waiting.outcome.set_result(answer)

    def _take_over(self, pending: Pending[Any], committed: Committed[Any]) -> Outcome[Any]:
        shown = asked = None
        if pending.validate_only:
            # The state is now exactly what the operation saw.
            shown = preview(self.state, committed.changes)
            asked = Prospect(self.state, committed.changes) if takes_away(committed.changes) else None
        elif committed.changes:
            self.state.apply(committed.changes)
        return Outcome(
            value=committed.value,
            revision=committed.revision,
            preview=shown,
            prospect=asked,
            replayed=committed.replayed,
        )

    def _tell(self, changes: Sequence[Change]) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(changes)
            except Exception:
                # The change is made; a bug of one listener must not keep the others, or the caller, from hearing so.
                log.exception("listener_failed", revision=self.state.revision)

    async def close(self) -> None:
        """Let what waits be committed and acknowledged, then close the store."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        self._store.close()
