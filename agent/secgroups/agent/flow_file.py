"""A flow table that outlives its process: flows and fragments in a mapped file, and beside it what their numbers mean.

The table is written by verdicts as it is; nothing is copied and nothing is synced, so the place for it is memory: a tmpfs. It is
for the next process on the same boot of the same machine (times are monotonic), which goes on after a kill as after a clean end.

``FILE``: a header page (``_HEADER``, and the mark of what the flows were judged against), epochs of servers, then for each shard
flows, upper halves of their counts, times of opening and first fragments, as ``engine/layout.pxi`` says. ``FILE.names``: lines
of JSON, in the order in which things came (``+``) and went (``-``): servers, endpoints, rules. A name is written before the first
packet can use its number, and ``-`` before the number can mean something else. An incomplete last line was never used.

A file is refused, and said so, if it is of another format, size, boot or program, if it is torn or damaged, or if the names are not
of this table. A write of names that fails makes the file one that the next process refuses: it would know numbers by wrong names.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from secgroups.agent._engine import LAYOUT, file_bytes
from secgroups.agent.errors import ConfigError, FlowFileError
from secgroups.agent.settings import EngineSettings

FORMAT_VERSION = 1
SEED_BYTES = 64

_MAGIC = b"SGFLOWS\n"
# Magic, format, layout, flows_max, fragments_max, shards, boot, table id, seed, tcp loose until; then a checksum of all that.
_HEADER = struct.Struct("<8sII QQQ 16s16s64s Q")
_CHECKSUM = struct.Struct("<I")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Names are written anew at the start, and when this many lines have come since.
_LINES_MAX = 1_000_000


@dataclass(slots=True)
class Names:
    """What numbers mean: servers by number (generation, name), endpoints (server, packed address), rules (handle, id, group id)."""

    servers: dict[int, tuple[int, str]] = field(default_factory=dict)
    endpoints: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    rules: dict[int, tuple[int, str, str]] = field(default_factory=dict)

    def take(self, entry: list[object]) -> None:
        """Follow one line. KeyError, TypeError or ValueError if it makes no sense."""
        match entry:
            case ["+s", int(number), int(generation), str(name)]:
                self.servers[number] = (generation, name)
            case ["+e", int(number), int(server), str(address)]:
                self.endpoints[number] = (server, bytes.fromhex(address))
            case ["+r", int(number), int(handle), str(rule_id), str(group_id)]:
                self.rules[number] = (handle, rule_id, group_id)
            case ["-s", int(number)]:
                del self.servers[number]
            case ["-e", int(number)]:
                del self.endpoints[number]
            case ["-r", int(number)]:
                del self.rules[number]
            case _:
                raise ValueError(f"{entry!r} is no line of names")

    def lines(self) -> Iterable[list[object]]:
        """Return the lines that make these names."""
        yield from (["+s", number, *server] for number, server in self.servers.items())
        yield from (["+e", number, server, address.hex()] for number, (server, address) in self.endpoints.items())
        yield from (["+r", number, *rule] for number, rule in self.rules.items())


class FlowFile:
    """One table's file, locked for this process. ``refused`` says why what was there is not used, empty if it is or nothing was."""

    def __init__(self, path: Path, settings: EngineSettings, loose_until_ns: int) -> None:
        """Open the file, or begin a new one where there is none that can be used.

        Raises ``ConfigError`` if it can't be opened or made, or another process has it.
        """
        self._path = path
        self._size = file_bytes(settings.flows_max, settings.fragments_max, settings.shards)
        self._pending: list[str] = []
        self._lines = 0
        self._names_file = -1
        self.broken = ""
        self.refused = ""
        self.names = Names()
        self.file = self._opened()
        try:
            self.seed, self.loose_until_ns = self._read(settings)
            self.is_new = False
        except FlowFileError as error:
            self.refused = "" if os.fstat(self.file).st_size == 0 else str(error)
            self.is_new, self.names = True, Names()
            self.loose_until_ns = loose_until_ns
            self.seed = self._begin(settings)
        self._write_names()

    def note(self, *entry: object) -> None:
        """Have a line of names written with the next ``flush``."""
        self._pending.append(json.dumps(entry, separators=(",", ":")))

    def flush(self) -> None:
        """Write the lines that were noted. If that fails, the file is given up for the next process: ``broken`` says why."""
        if not self._pending or self.broken:
            self._pending.clear()
            return
        content = "".join(f"{line}\n" for line in self._pending).encode()
        self._lines += len(self._pending)
        try:
            _write_all(self._names_file, content)
            for line in self._pending:
                self.names.take(json.loads(line))
            self._pending.clear()
            if self._lines > _LINES_MAX:
                self._write_names()
        except OSError as error:
            self.broken = f"{self._path}.names can't be written: {error.strerror}"
            os.pwrite(self.file, bytes(len(_MAGIC)), 0)

    def close(self) -> None:
        """Leave the file to the next process. Nothing may be decided any more, though the memory is mapped while the core lives."""
        fcntl.flock(self.file, fcntl.LOCK_UN)
        for file in (self._names_file, self.file):
            if file >= 0:
                os.close(file)
        self._names_file = self.file = -1

    def _opened(self) -> int:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"flow_table {self._path} can't be opened: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise ConfigError(f"flow_table {self._path} is in use by another agent") from None
        return file

    def _read(self, settings: EngineSettings) -> tuple[bytes, int]:
        """Return seed and end of the loose time after reading the names. Raises ``FlowFileError``."""
        head = os.pread(self.file, _HEADER.size + _CHECKSUM.size, 0)
        if len(head) < _HEADER.size + _CHECKSUM.size:
            raise FlowFileError("is torn: it has no whole header")
        magic, version, layout, flows, fragments, shards, boot, table_id, seed, loose_until_ns = _HEADER.unpack_from(head)
        if magic != _MAGIC:
            raise FlowFileError("is no flow table, or was given up by the process that had it")
        if version != FORMAT_VERSION or layout != _layout():
            raise FlowFileError(f"has format {version}.{layout:08x}, this agent reads {FORMAT_VERSION}.{_layout():08x}")
        if zlib.crc32(head[: _HEADER.size]) != _CHECKSUM.unpack_from(head, _HEADER.size)[0]:
            raise FlowFileError("is damaged: the checksum of its header does not fit")
        held, wanted = (flows, fragments, shards), (settings.flows_max, settings.fragments_max, settings.shards)
        if held != wanted:
            raise FlowFileError(f"is for {held} flows, fragments and shards, wanted are {wanted}")
        if os.fstat(self.file).st_size != self._size:
            raise FlowFileError(f"is torn: {os.fstat(self.file).st_size} bytes of {self._size}")
        if boot != _boot():
            raise FlowFileError("is of another boot of this machine")
        self._read_names(table_id)
        return seed, loose_until_ns

    def _read_names(self, table_id: bytes) -> None:
        try:
            lines = self._names_path.read_bytes().split(b"\n")
        except OSError as error:
            raise FlowFileError(f"has no names: {error.strerror}") from None
        try:
            if json.loads(lines[0]) != ["table", table_id.hex()]:
                raise FlowFileError("has the names of another table")
            for line in lines[1:-1]:
                self.names.take(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise FlowFileError(f"has damaged names: {error}") from None

    def _begin(self, settings: EngineSettings) -> bytes:
        """Make a new, empty table of the file and return its seed."""
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
        return seed

    def _write_names(self) -> None:
        """Write all names anew, in place of what was there."""
        table_id = _HEADER.unpack(os.pread(self.file, _HEADER.size, 0))[7]
        lines = [["table", table_id.hex()], *self.names.lines()]
        new = self._path.with_name(f"{self._path.name}.names.new")
        try:
            with new.open("wb") as file:
                file.writelines(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
            new.replace(self._names_path)
            if self._names_file >= 0:
                os.close(self._names_file)
            self._names_file = os.open(self._names_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{self._names_path} can't be written: {error.strerror}") from None
        self._lines = 0

    @property
    def _names_path(self) -> Path:
        return self._path.with_name(f"{self._path.name}.names")


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _layout() -> int:
    return zlib.crc32(repr(LAYOUT).encode())


def _boot() -> bytes:
    return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
