"""Opening the database file: one controller at a time, found sound, or one clear line that says why not."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from secgroups.controller.errors import StoreFileError

# How long to wait for a tool that has the file open; a backup holds its lock for milliseconds.
BUSY_TIMEOUT_MS = 2_000
# What the journal is cut back to after a burst.
JOURNAL_BYTES_MAX = 64 << 20
PAGE_CACHE_KIB = 64 << 10
CACHED_STATEMENTS = 256
# Of a file that is larger, SQLite reads the rest when it comes to it.
READ_AHEAD_BYTES_MAX = 1 << 30
_MAGIC = b"SQLite format 3\0"


def lock(path: Path) -> int:
    """Return a handle that keeps other controllers off ``path`` until it is closed or the process ends. StoreFileError."""
    folder = path.parent
    if not folder.is_dir():
        raise StoreFileError(f"the data directory {folder} does not exist or is no directory; make it first")
    lock_path = path.with_name(path.name + ".lock")
    try:
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreFileError(f"the data directory {folder} can't be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        by = f" (process {holder})" if holder.isdecimal() else ""
        raise StoreFileError(f"{path} is in use by another controller{by}; stop that one or choose another directory") from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except OSError:
        # A full disk: who holds the lock stays unsaid, and holds it all the same.
        pass
    return handle


def open_writer(path: Path, *, durable: bool) -> sqlite3.Connection:
    """Return the one connection that writes; the file is made if there is none. StoreFileError if it can't be used.

    A file that was there is read and not changed: whose it is has yet to be found out. Then comes ``begin_journal``.
    """
    connection = None
    try:
        if not _make_private(path):
            _check_can_be_written(path)
            # Not later: to close a file drops the locks that SQLite has on it in this process.
            read_ahead(path)
        # Used by one thread at a time, not always the one that opened it.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=CACHED_STATEMENTS)
        connection.row_factory = sqlite3.Row
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            f"synchronous = {'FULL' if durable else 'OFF'}",
            "foreign_keys = ON",
            # Savepoints must not fail for want of a temporary file.
            "temp_store = MEMORY",
            f"cache_size = -{PAGE_CACHE_KIB}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        _check_is_sound(connection, path)
    except OSError as error:
        raise StoreFileError(f"{path} can't be opened: {error.strerror}") from None
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # SQLite quotes what is damaged in its message, and that need not be text.
        if connection is not None:
            connection.close()
        raise unusable(path, error) from None
    except StoreFileError:
        if connection is not None:
            connection.close()
        raise
    return connection


def begin_journal(connection: sqlite3.Connection) -> None:
    """Keep a write-ahead journal from now on, which the file itself remembers."""
    for pragma in ("journal_mode = WAL", f"journal_size_limit = {JOURNAL_BYTES_MAX}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads, and sees nothing but what was committed."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def unusable(path: Path, error: Exception) -> StoreFileError:
    """Return the error that tells the operator what is wrong with the file."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    match primary:
        case sqlite3.SQLITE_NOTADB:
            return StoreFileError(f"{path} is no SQLite database; choose another directory or restore a backup")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreFileError(f"{path} is locked by another program; close that one")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY:
            return StoreFileError(f"{path} can't be opened for writing: {error}")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return StoreFileError(f"{path} can't be written: {error}")
    return StoreFileError(f"{path} is damaged ({error}); restore a backup")


def _make_private(path: Path) -> bool:
    """Make an empty file, if there is none, that only its owner can read: it holds everybody's policy. False if there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    # The entry of a new file is on disk only when its directory is.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _check_can_be_written(path: Path) -> None:
    # SQLite itself would open it for reading alone and fail at the first change, and take a file of one byte for an empty one.
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        magic = os.pread(handle, len(_MAGIC), 0)
    finally:
        os.close(handle)
    if magic and magic != _MAGIC:
        raise StoreFileError(f"{path} is no SQLite database; choose another directory or restore a backup")


def _check_is_sound(connection: sqlite3.Connection, path: Path) -> None:
    # Reads the whole file once: to serve wrong rules would cost more. A tenth of a second for 100 MB in the page cache.
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise StoreFileError(f"{path} is damaged ({' '.join(str(verdict).split())}); restore a backup")


def read_ahead(path: Path) -> None:
    """Have the system read a file into memory from its beginning, as far as there is room: SQLite jumps about and waits each time.

    A file of 260 MB is there after 0.1 s so, and checked after 0.5 s, where the check took 3.3 s. What can't be read is left to
    SQLite, which says why.
    """
    try:
        with path.open("rb", buffering=0) as file, Path(os.devnull).open("wb", buffering=0) as nowhere:
            # Nothing is copied, not even into this process.
            os.sendfile(nowhere.fileno(), file.fileno(), 0, READ_AHEAD_BYTES_MAX)
    except OSError:
        return


def check_references(connection: sqlite3.Connection, path: Path) -> None:
    """StoreFileError if an object refers to one that is not there, as after an edit by hand: SQLite's shell does not prevent it."""
    broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise StoreFileError(f"{path} is damaged ({broken[0]} refer to {broken[2]} that are gone); restore a backup")
