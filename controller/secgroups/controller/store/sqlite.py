"""The store on one SQLite file: several waiting mutations share a commit, each has its own savepoint and revision.

Synchronous and for one thread at a time; ``core`` gives it a thread of its own. Only the change log is read through a connection
of its own and may be asked from any thread. A second controller on the same file is refused by a lock beside it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from secgroups.controller.errors import RequestError, StoreFileError, StoreUnavailableError
from secgroups.controller.limits import Limits
from secgroups.controller.model import Change, ObjectKind
from secgroups.controller.store import answers, change_log, loading, timelines
from secgroups.controller.store.ids import Ids
from secgroups.controller.store.interface import ChangePage, Committed, Contents, Pending, Place
from secgroups.controller.store.migrations import MIGRATIONS
from secgroups.controller.store.opening import begin_journal, check_references, lock, open_reader, open_writer, unusable
from secgroups.controller.store.transaction import SqliteTransaction

T = TypeVar("T")

# How long the change log goes back, and how many revisions at most.
CHANGES_AGE_MAX_US = 30 * 24 * 3600 * 1_000_000
CHANGES_REVISIONS_MAX = 1_000_000
# Answers kept for repeats; beyond it the oldest are forgotten before their hour is over.
ANSWERS_MAX = 200_000
# Pruning shares a commit, so it comes in bites: at least so many rows, and more than were written since the last bite.
PRUNE_EVERY_US = 1_000_000
PRUNE_ROWS_MIN = 1_000

# What an operation itself did wrong; any other error of SQLite is trouble with the file and ends the batch.
_OWN_FAULTS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)


def _now_us() -> int:
    return time.time_ns() // 1000


class SqliteStore:
    """An open store, as ``Store`` says.

    ``clock_us`` gives microseconds since the Unix epoch. Without ``durable`` a commit does not wait for the disk. StoreFileError if
    the file can't be used.
    """

    def __init__(
        self, path: Path, *, limits: Limits | None = None, clock_us: Callable[[], int] = _now_us, durable: bool = True
    ) -> None:
        self._path = path
        self._limits = limits or Limits()
        self._clock_us = clock_us
        self._lock = lock(path)
        try:
            self._connection = open_writer(path, durable=durable)
        except StoreFileError:
            os.close(self._lock)
            raise
        self._database = Database(self._connection, execute_plugins=False)
        self._reader: sqlite3.Connection | None = None
        self._reader_lock = threading.Lock()
        self._closed = False
        self.timeline_id = ""
        try:
            self._migrate()
            meta = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
            self.store_epoch: str = meta["store_epoch"]
            self.revision = int(meta["revision"])
            self.compacted_revision = int(meta["compacted_revision"])
            self._timelines_over = timelines.read(self._connection)
            self._ids = Ids(meta["last_id"], secrets.randbits)
            self._answers_kept = answers.count(self._connection)
        except StoreFileError:
            self.close()
            raise
        except (sqlite3.Error, KeyError, ValueError) as error:
            self.close()
            raise unusable(path, error) from None
        self._pruned_us = 0
        self._rows_unpruned = 0

    def _migrate(self) -> None:
        with Database(memory=True, execute_plugins=False) as empty:
            known = {migration.name for migration in MIGRATIONS.pending(empty)}
        applied = [migration.name for migration in MIGRATIONS.applied(self._database)]
        newer = [name for name in applied if name not in known]
        if newer:
            raise StoreFileError(f"{self._path} was written by a newer program (schema step {newer[-1]}); upgrade this one")
        # A first start that was cut off has left no more than the table of the steps.
        if not applied and set(self._database.table_names()) - {MIGRATIONS.migrations_table}:
            raise StoreFileError(f"{self._path} is a database of another program; choose another directory")
        if len(applied) < len(known):
            # Else whoever loads finds out: to ask SQLite would take a tenth of the start.
            check_references(self._connection, self._path)
        begin_journal(self._connection)
        MIGRATIONS.apply(self._database)

    def load(self) -> Contents:
        """Return everything that is kept. StoreFileError, which names the row, if something of it can't be."""
        try:
            return loading.load(self._connection, self.revision)
        except (sqlite3.Error, ValueError) as error:
            refused = unusable(self._path, error)
        # Not before here: as its context, what went wrong would keep a cursor, and with it a closed file, open.
        raise refused

    def begin_timeline(self) -> None:
        """Begin the timeline of this opening. StoreFileError if that can't be written."""
        timeline_id = str(uuid.uuid4())
        try:
            with self._database.atomic():
                timelines.begin(self._connection, timeline_id, self.revision)
            self._timelines_over = timelines.read(self._connection)
        except sqlite3.Error as error:
            raise unusable(self._path, error) from None
        self.timeline_id = timeline_id

    def covers(self, timeline_id: str, revision: int) -> bool:
        """Whether a revision that was told under a timeline is one of this store."""
        last = self.revision if timeline_id and timeline_id == self.timeline_id else self._timelines_over.get(timeline_id, -1)
        return revision <= min(last, self.revision)

    def commit(self, batch: Sequence[Pending[Any]]) -> list[Committed[Any] | Exception]:
        """Run every mutation of ``batch`` in order and commit once; return what became of each, in order.

        One that raises undoes only itself, and its exception is its result. If the commit fails, nothing was changed and every
        result is a StoreUnavailableError.
        """
        revision, answers_kept, compacted = self.revision, 0, None
        results: list[Committed[Any] | Exception] = []
        changes: list[Change] = []
        kept_before = self._answers_kept, self._pruned_us, self._rows_unpruned
        try:
            self._end_what_failed()
            with self._database.atomic():
                for pending in batch:
                    result = self._run(pending, revision)
                    results.append(result)
                    if isinstance(result, Committed) and not pending.validate_only:
                        revision = result.revision
                        changes += result.changes
                        answers_kept += _keeps_answer(pending) and result.replayed is None
                if not changes and not answers_kept:
                    # A refusal needs no disk.
                    raise _UndoneError(None)  # noqa: TRY301
                change_log.append(self._connection, changes)
                self._answers_kept += answers_kept
                compacted = self._prune(revision, len(changes) + answers_kept)
                self._count_to(revision)
        except _UndoneError:
            return results
        except sqlite3.Error as error:
            if not self._took_effect(revision):
                # What was forgotten in it is there again.
                self._answers_kept, self._pruned_us, self._rows_unpruned = kept_before
                message = f"the store can't be written now ({error}); nothing was changed, try again"
                return [StoreUnavailableError(message) for _ in batch]
        self.revision = revision
        self.compacted_revision = compacted or self.compacted_revision
        return results

    def _end_what_failed(self) -> None:
        """Roll back a transaction whose own rollback failed: inside of it, the next commit would be none."""
        if self._connection.in_transaction:
            self._connection.rollback()

    def _took_effect(self, revision: int) -> bool:
        """Whether a commit up to ``revision`` is in the file though it was answered with an error, as a last step can be."""
        try:
            self._end_what_failed()
            counted = self._connection.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()[0]
        except sqlite3.Error:
            # Nobody can tell. If it did, ``_count_to`` refuses what comes next.
            return False
        return revision > self.revision and int(counted) == revision

    def _run(self, pending: Pending[Any], revision: int) -> Committed[Any] | Exception:
        """Run one mutation in its savepoint, on top of ``revision``; return what became of it."""
        now_us = self._clock_us()
        transaction = SqliteTransaction(
            self._connection, self._ids, limits=self._limits, revision=revision + 1, now_us=now_us, actor=pending.actor
        )
        key = None if pending.validate_only else pending.request
        try:
            with self._database.atomic():
                if key is not None and (answer := answers.find(self._connection, key, now_us)) is not None:
                    return Committed(value=None, revision=revision, replayed=answer)
                value = pending.operation(transaction)
                changes = transaction.changes
                if pending.validate_only:
                    raise _UndoneError(Committed(value=value, revision=revision, changes=changes))  # noqa: TRY301
                after = revision + 1 if changes else revision
                if key is not None and pending.encode is not None:
                    answers.keep(self._connection, key, pending.encode(value, after), now_us)
        except _UndoneError as undone:
            return undone.result  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            if isinstance(error, _OWN_FAULTS):
                return error
            raise
        except Exception as error:
            # Whoever asked is told; what it wrote is undone, and the others of the batch go on.
            return error
        return Committed(value=value, revision=after, changes=changes)

    def _count_to(self, revision: int) -> None:
        """Move the counter: last in the transaction, so that whoever sees it sees all that it counts."""
        if revision == self.revision:
            return
        move = "UPDATE meta SET value = ? WHERE key = 'revision' AND value = ?"
        if self._connection.execute(move, (str(revision), str(self.revision))).rowcount != 1:
            raise sqlite3.OperationalError("another program has changed the file; restart the controller")
        self._connection.execute("UPDATE meta SET value = ? WHERE key = 'last_id'", [self._ids.last])

    def _prune(self, revision: int, rows_written: int) -> int | None:
        """Forget what nobody can ask for any more, a bite at a time. Returns the last revision forgotten, None if none was."""
        now_us = self._clock_us()
        self._rows_unpruned += rows_written
        if 0 <= now_us - self._pruned_us < PRUNE_EVERY_US:
            return None
        rows_max = max(PRUNE_ROWS_MIN, 2 * self._rows_unpruned)
        compacted = change_log.prune(
            self._connection,
            before_us=now_us - CHANGES_AGE_MAX_US,
            upto_revision=revision - CHANGES_REVISIONS_MAX,
            rows_max=rows_max,
        )
        if self._answers_kept > ANSWERS_MAX:
            # The running number is too high by those that were replaced or whose commit failed.
            self._answers_kept = answers.count(self._connection)
        surplus = self._answers_kept - ANSWERS_MAX
        self._answers_kept -= answers.prune(self._connection, now_us=now_us, surplus=surplus, rows_max=rows_max)
        self._pruned_us, self._rows_unpruned = now_us, 0
        return compacted

    def changes_since(self, revision: int, limit: int = 1_000) -> ChangePage:
        """Return what happened after ``revision``: about ``limit`` changes, but whole revisions and at least one.

        StoreUnavailableError if the file can't be read, or what it says is no change.
        """
        return self._read_log(lambda connection: change_log.read(connection, revision, limit))

    def changes_before(
        self, project: str, before: Place | None, limit: int, without: Collection[ObjectKind] = ()
    ) -> list[tuple[Change, Place]]:
        """Return the latest changes before a place in the log, the newest first; see ``change_log``. StoreUnavailableError."""
        return self._read_log(lambda connection: change_log.read_back(connection, project, before, limit, without))

    def changes_of(self, key: str, limit: int) -> list[Change]:
        """Return the latest changes of the objects with a key, the newest first. StoreUnavailableError."""
        return self._read_log(lambda connection: change_log.read_of(connection, key, limit))

    def _read_log(self, read: Callable[[sqlite3.Connection], T]) -> T:
        with self._reader_lock:
            if self._closed:
                raise StoreUnavailableError("the store is closed")
            try:
                self._reader = self._reader or open_reader(self._path)
                return read(self._reader)
            except sqlite3.Error as error:
                raise StoreUnavailableError(f"the store can't be read now ({error}); try again") from None
            except (RequestError, LookupError, ValueError, TypeError) as error:
                raise StoreUnavailableError(f"the change log is damaged ({error}); restore a backup") from None

    def close(self) -> None:
        """Close the file and let others open it. Closing twice does no harm."""
        with self._reader_lock:
            if self._closed:
                return
            self._closed = True
            if self._reader is not None:
                self._reader.close()
            self._connection.close()
            os.close(self._lock)


def _keeps_answer(pending: Pending[Any]) -> bool:
    return pending.request is not None and pending.encode is not None and not pending.validate_only


class _UndoneError(Exception):
    """Ends a transaction without keeping it. Never leaves this module."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
