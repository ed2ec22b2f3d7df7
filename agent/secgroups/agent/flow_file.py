"""A flow table that outlives its process: flows and fragments in a mapped file, and beside it what their numbers mean.

The table is written by verdicts as it is; nothing is copied and nothing is synced, so the place for it is memory: a tmpfs. It is
for the next process on the same boot of the same machine (times are monotonic), which goes on after a kill as after a clean end.

``FILE``: a header page (``_HEADER``, and the mark of what the flows were judged against), epochs of servers, then for each shard
flows, upper halves of their counts, times of opening and first fragments, as ``engine/layout.pxi`` says. ``FILE.names``: see
``flow_names``. A name is written before the first packet can use its number, and that it went before the number can mean something
else. Both files are for their owner alone.

A file is refused, and said so, if it is of another format, size, boot or program, if it is torn or damaged, or if the names are not
of this table; a file that is no flow table at all is put aside. A write of names that fails makes the file one that the next
process refuses: it would know numbers by wrong names.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from secgroups.agent._engine import LAYOUT, file_bytes
from secgroups.agent.errors import ConfigError, FlowFileError
from secgroups.agent.flow_names import Names, NamesFile
from secgroups.agent.settings import EngineSettings

FORMAT_VERSION = 1
SEED_BYTES = 64
# Files that are no flow tables are kept up to this many; one more keeps the agent from starting.
ASIDE_MAX = 5

_MAGIC = b"SGFLOWS\n"
_GIVEN_UP = b"SGFLOWS-"
# Magic, format, layout, flows_max, fragments_max, shards, boot, table id, seed, tcp loose until; then a checksum of all that.
_HEADER = struct.Struct("<8sII QQQ 16s16s64s Q")
_CHECKSUM = struct.Struct("<I")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MODE = 0o600


class FlowFile:
    """One table's file, locked for this process.

    ``refused`` says why what was there is not used, empty if it is or nothing was. ``broken`` says why the next process will not be
    able to use it, empty while it will.
    """

    def __init__(self, path: Path, settings: EngineSettings, loose_until_ns: int) -> None:
        """Open the file, or begin a new one where there is none that can be used.

        Raises ``ConfigError`` if it can't be opened or made, or another process has it.
        """
        self._path = path
        self._size = file_bytes(settings.flows_max, settings.fragments_max, settings.shards)
        self._names = NamesFile(path.with_name(f"{path.name}.names"))
        self.broken = ""
        self.refused = ""
        self.file = self._opened()
        try:
            self._put_foreign_aside()
            self._go_on_or_begin(settings, loose_until_ns)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> Names:
        """What the numbers in the table mean."""
        return self._names.names

    def note(self, *entry: object) -> None:
        """Have a line of names written with the next ``flush``."""
        self._names.note(*entry)

    def flush(self) -> None:
        """Write the lines that were noted. If that fails, the file is given up for the next process: ``broken`` says why."""
        if self.broken:
            self._names.drop_notes()
            return
        try:
            self._names.write()
        except OSError as error:
            self.broken = f"{self._names.path} can't be written: {error.strerror}"
            os.pwrite(self.file, _GIVEN_UP, 0)

    def close(self) -> None:
        """Leave the file to the next process. Nothing may be decided any more, though the memory is mapped while the core lives."""
        self._names.close()
        if self.file >= 0:
            # The mapping would keep the lock.
            fcntl.flock(self.file, fcntl.LOCK_UN)
            os.close(self.file)
        self.file = -1

    def _opened(self) -> int:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
        except OSError as error:
            raise ConfigError(f"flow_table {self._path} can't be opened: {error.strerror}") from None
        try:
            self._check(file)
        except ConfigError:
            os.close(file)
            raise
        return file

    def _check(self, file: int) -> None:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"flow_table {self._path} is not a regular file")
        if found.st_uid != os.geteuid():
            raise ConfigError(f"flow_table {self._path} belongs to user {found.st_uid}, this agent runs as {os.geteuid()}")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(found, self._path.stat())
        except OSError:
            is_there = False
        # Another agent may have put the file aside just now, and then it is that one's.
        if not is_there:
            raise ConfigError(f"flow_table {self._path} is in use by another agent")

    def _put_foreign_aside(self) -> None:
        """Lose nothing of somebody who named the wrong file."""
        head = os.pread(self.file, len(_MAGIC), 0)
        if not head.strip(b"\0") or _MAGIC.startswith(head) or head == _GIVEN_UP:
            return
        names = [self._path.with_name(f"{self._path.name}.aside-{number}") for number in range(1, ASIDE_MAX + 1)]
        aside = next((name for name in names if not name.exists()), None)
        if aside is None:
            raise ConfigError(f"flow_table {self._path} is no flow table, and {ASIDE_MAX} such files are put aside already")
        self._path.rename(aside)
        os.close(self.file)
        self.file = self._opened()
        self.refused = f"is no flow table; it was put aside as {aside}"

    def _go_on_or_begin(self, settings: EngineSettings, loose_until_ns: int) -> None:
        try:
            os.fchmod(self.file, _MODE)
            table_id, self.seed, self.loose_until_ns = self._read(settings)
            self.is_new = False
        except FlowFileError as error:
            if os.fstat(self.file).st_size:
                self.refused = str(error)
            self.is_new, self.loose_until_ns = True, loose_until_ns
            table_id, self.seed = self._begin(settings)
        try:
            self._names.begin(table_id)
        except OSError as error:
            raise ConfigError(f"{self._names.path} can't be written: {error.strerror}") from None

    def _read(self, settings: EngineSettings) -> tuple[bytes, bytes, int]:
        """Return table id, seed and end of the loose time after reading the names. Raises ``FlowFileError``."""
        size = os.fstat(self.file).st_size
        head = os.pread(self.file, _HEADER.size + _CHECKSUM.size, 0)
        if len(head) < _HEADER.size + _CHECKSUM.size or not head.strip(b"\0"):
            raise FlowFileError("is torn: it has no whole header")
        magic, version, layout, flows, fragments, shards, boot, table_id, seed, loose_until_ns = _HEADER.unpack_from(head)
        if magic == _GIVEN_UP:
            raise FlowFileError("was given up by the process that had it: names could not be written")
        if version != FORMAT_VERSION or layout != _layout():
            raise FlowFileError(f"has format {version}.{layout:08x}, this agent reads {FORMAT_VERSION}.{_layout():08x}")
        if zlib.crc32(head[: _HEADER.size]) != _CHECKSUM.unpack_from(head, _HEADER.size)[0]:
            raise FlowFileError("is damaged: the checksum of its header does not fit")
        if (flows, fragments, shards) != (settings.flows_max, settings.fragments_max, settings.shards):
            raise FlowFileError(
                f"is for {flows} flows, {fragments} fragments and {shards} shards, wanted are {settings.flows_max}, "
                f"{settings.fragments_max} and {settings.shards}"
            )
        if size != self._size:
            raise FlowFileError(f"is torn: {size} bytes of {self._size}")
        if boot != _boot():
            raise FlowFileError("is of another boot of this machine")
        self._names.read(table_id)
        return table_id, seed, loose_until_ns

    def _begin(self, settings: EngineSettings) -> tuple[bytes, bytes]:
        """Make a new, empty table of the file and return its id and its seed."""
        seed = secrets.token_bytes(SEED_BYTES)
        table_id = secrets.token_bytes(16)
        head = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            _layout(),
            settings.flows_max,
            settings.fragments_max,
            settings.shards,
            _boot(),
            table_id,
            seed,
            self.loose_until_ns,
        )
        try:
            os.ftruncate(self.file, 0)
            # A page that there is no memory for would end the process when a packet first needs it.
            os.posix_fallocate(self.file, 0, self._size)
            os.pwrite(self.file, head + _CHECKSUM.pack(zlib.crc32(head)), 0)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.file, 0)
            raise ConfigError(f"flow_table {self._path} needs {self._size} bytes: {error.strerror}") from None
        return table_id, seed


def _layout() -> int:
    return zlib.crc32(repr(LAYOUT).encode())


def _boot() -> bytes:
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except OSError as error:
        raise ConfigError(f"flow_table needs {_BOOT_ID}: {error.strerror}") from None
