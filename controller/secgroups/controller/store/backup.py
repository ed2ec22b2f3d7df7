"""Copies of the database: made while it is in use, and put in its place while it is not."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from secgroups.controller.errors import StoreFileError, StoreUnavailableError
from secgroups.controller.store.opening import lock, open_reader, unusable
from secgroups.controller.store.sqlite import SqliteStore

# Of copies that are under way; what a killed process left behind is removed by the next one.
PART_GLOB = "backup-*.part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was copied."""

    revision: int
    store_epoch: str
    size_bytes: int


def copy(database: Path, to: Path) -> Copied:
    """Write a copy of a database in use to the new file ``to``: as it is at one revision, and while others write.

    StoreUnavailableError if that can't be done; nothing is left then. For a thread of its own.
    """
    try:
        os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with closing(open_reader(database)) as source, closing(sqlite3.connect(to)) as target:
            # In one step: a copy in several begins anew whenever somebody writes between them.
            source.backup(target)
            meta = dict(target.execute("SELECT key, value FROM meta").fetchall())
        return Copied(revision=int(meta["revision"]), store_epoch=meta["store_epoch"], size_bytes=to.stat().st_size)
    except (OSError, sqlite3.Error) as error:
        to.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreUnavailableError(
            f"a copy of the database can't be made in {to.parent} ({reason}); make room, then try again"
        ) from None


def restore(copied: Path, database: Path) -> tuple[Copied, Path | None]:
    """Put a copy in the place of a database that nobody uses, as the beginning of a new store; agents are told everything anew.

    Return what it holds, and where the database that was there is kept. StoreFileError, and nothing has changed, if it is none, is
    damaged, or is of a newer program, or if a controller uses the database.
    """
    if not copied.is_file():
        raise StoreFileError(f"{copied} is no file; name one that sgctl backup wrote")
    handle = lock(database)
    part = database.with_name(f"backup-{os.getpid()}.part")
    try:
        found = _prepare(copied, part)
        kept = _keep(database)
        # From here on the copy is the database, whatever happens.
        part.replace(database)
        _make_durable(database)
    except OSError as error:
        raise StoreFileError(f"{copied} can't be put into {database.parent}: {error.strerror}") from None
    finally:
        for ending in ("", "-wal", "-shm", "-journal", ".lock"):
            part.with_name(part.name + ending).unlink(missing_ok=True)
        os.close(handle)
    return found, kept


def _prepare(copied: Path, part: Path) -> Copied:
    """Make of a copy a database that a controller can start with. StoreFileError, OSError."""
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        read_only = f"{copied.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(read_only, uri=True)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise unusable(copied, error) from None
    try:
        # All that a start looks at is looked at here, and the schema brought up to date.
        store = SqliteStore(part)
        try:
            store.load()
        finally:
            store.close()
        epoch = str(uuid.uuid4())
        with closing(sqlite3.connect(part)) as connection:
            with connection:
                connection.execute("UPDATE meta SET value = ? WHERE key = 'store_epoch'", [epoch])
            revision = int(connection.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()[0])
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except StoreFileError as error:
        raise StoreFileError(str(error).replace(str(part), str(copied))) from None
    except sqlite3.Error as error:
        raise unusable(copied, error) from None
    _make_durable(part)
    return Copied(revision=revision, store_epoch=epoch, size_bytes=part.stat().st_size)


def _keep(database: Path) -> Path | None:
    """Give the database that is there a second name, with all that is in its journal; return that. None if there is none."""
    if not database.exists():
        return None
    kept = database.with_name(f"{database.name}.before-restore-{time.time_ns() // 1_000_000}")
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error:
        # A damaged one is kept as it is, with its journal.
        for ending in ("-wal", "-shm"):
            journal = database.with_name(database.name + ending)
            if journal.exists():
                os.link(journal, kept.with_name(kept.name + ending))
    os.link(database, kept)
    for ending in ("-wal", "-shm", "-journal"):
        database.with_name(database.name + ending).unlink(missing_ok=True)
    return kept


def _make_durable(path: Path) -> None:
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        handle = os.open(each, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
