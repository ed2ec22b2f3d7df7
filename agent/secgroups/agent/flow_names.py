"""What the numbers in a flow table's file mean: ``FILE.names``, written as names come and go, and read by the next process.

A line is eight hexadecimal digits, a blank and JSON that has these digits as its CRC-32. The first line names the table, the others
tell in their order what came (``+``) and went (``-``): servers, endpoints, rules. An incomplete last line was never used.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from secgroups.agent.errors import FlowFileError

SERVERS_MAX = 1 << 20
# Numbers are dense, and there is memory for all below the highest: one that is far beyond what an agent holds is damage. An agent
# that ever needed more has no names that the next process takes.
ENDPOINTS_MAX = RULES_MAX = 1 << 22
# Handles of servers have so much room beside their number, those of rules are 32 bits.
GENERATIONS = 1 << 12
HANDLE_MAX = 0xFFFF_FFFE
ADDRESS_BYTES = 16
# All names are written anew at the start, and when this many lines have come since.
LINES_MAX = 1_000_000

_MODE = 0o600


@dataclass(slots=True)
class Names:
    """What numbers mean: servers by number (generation, name), endpoints (server, packed address), rules (handle, id, group id)."""

    servers: dict[int, tuple[int, str]] = field(default_factory=dict)
    endpoints: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    rules: dict[int, tuple[int, str, str]] = field(default_factory=dict)

    def take(self, entry: list[object]) -> None:
        """Follow one line. KeyError or ValueError if it makes no sense."""
        match entry:
            case ["+s", int(number), int(generation), str(name)] if 0 <= number < SERVERS_MAX and 0 < generation < GENERATIONS:
                self.servers[number] = (generation, _text(name))
            case ["+e", int(number), int(server), str(address)] if 0 <= number < ENDPOINTS_MAX:
                self.endpoints[number] = (server, _address(address))
            case ["+r", int(number), int(handle), str(rule_id), str(group_id)] if (
                0 < number < RULES_MAX and 0 < handle <= HANDLE_MAX
            ):
                self.rules[number] = (handle, _text(rule_id), _text(group_id))
            case ["-s", int(number)]:
                del self.servers[number]
            case ["-e", int(number)]:
                del self.endpoints[number]
            case ["-r", int(number)]:
                del self.rules[number]
            case _:
                raise ValueError(f"{entry!r} is no line of names")

    def check(self) -> None:
        """ValueError unless every endpoint is of a server that has a name, and nothing has two numbers."""
        for number, (server, _) in self.endpoints.items():
            if server not in self.servers:
                raise ValueError(f"endpoint {number} is of server {server}, which has no name")
        named: tuple[tuple[str, list[object]], ...] = (
            ("server", [name for _, name in self.servers.values()]),
            ("server's address", [*self.endpoints.values()]),
            ("rule", [rule[1:] for rule in self.rules.values()]),
            ("handle", [rule[0] for rule in self.rules.values()]),
        )
        for what, each in named:
            if len(set(each)) < len(each):
                raise ValueError(f"a {what} has two numbers")

    def lines(self) -> Iterable[list[object]]:
        """Return the lines that make these names."""
        yield from (["+s", number, *server] for number, server in self.servers.items())
        yield from (["+e", number, server, address.hex()] for number, (server, address) in self.endpoints.items())
        yield from (["+r", number, *rule] for number, rule in self.rules.items())


class NamesFile:
    """The file of one table's names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = Names()
        self._pending: list[list[object]] = []
        self._file = -1
        self._lines = 0
        self._table_id = b""
        self._whole_bytes = 0

    def read(self, table_id: bytes) -> None:
        """Take the names of a table. Raises ``FlowFileError``."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise FlowFileError(f"has no names: {error.strerror}") from None
        lines = content.split(b"\n")
        names = Names()
        try:
            if _decoded(lines[0]) != ["table", table_id.hex()]:
                raise FlowFileError("has the names of another table")
            for line in lines[1:-1]:
                names.take(_decoded(line))
            names.check()
        except (ValueError, KeyError) as error:
            raise FlowFileError(f"has damaged names: {error}") from None
        self.names, self._lines = names, len(lines) - 1
        self._table_id, self._whole_bytes = table_id, len(content) - len(lines[-1])

    def begin(self, table_id: bytes) -> None:
        """Write all names for a table, in place of what was there. OSError if that fails; what was there then still is.

        The names that were read for just this table are gone on with if there is no room for others beside them.
        """
        was_read = table_id == self._table_id
        self._table_id = table_id
        try:
            self._rewrite()
        except OSError:
            if not was_read:
                raise
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.ftruncate(self._file, self._whole_bytes)

    def note(self, *entry: object) -> None:
        """Have a line written with the next ``write``."""
        self._pending.append(list(entry))

    def drop_notes(self) -> None:
        """Forget the lines that were noted."""
        self._pending.clear()

    def write(self) -> None:
        """Write the lines that were noted. OSError if that fails: the file then lacks some of them."""
        if not self._pending:
            return
        _write_all(self._file, b"".join(map(_encoded, self._pending)))
        for entry in self._pending:
            self.names.take(entry)
        self._lines += len(self._pending)
        self._pending.clear()
        if self._lines >= LINES_MAX:
            # If there is no room for a short file beside the long one, that stays, and it is tried again some other time.
            with suppress(OSError):
                self._rewrite()
            self._lines = 0

    def close(self) -> None:
        """Write no more."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _rewrite(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        new.unlink(missing_ok=True)
        # Whatever somebody may have put there in between is not written to.
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, _MODE)
        try:
            lines: list[list[object]] = [["table", self._table_id.hex()], *self.names.lines()]
            _write_all(file, b"".join(map(_encoded, lines)))
            new.replace(self.path)
        except OSError:
            os.close(file)
            new.unlink(missing_ok=True)
            raise
        self.close()
        self._file, self._lines = file, 0


def _encoded(entry: list[object]) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _text(value: str) -> str:
    """Return a name. ValueError if it is none that can be told: JSON may hold half a character."""
    value.encode()
    return value


def _address(digits: str) -> bytes:
    """Return a packed address. ValueError if it is none."""
    address = bytes.fromhex(digits)
    if len(address) != ADDRESS_BYTES:
        raise ValueError(f"{digits[:80]!r} is no address of {ADDRESS_BYTES} bytes")
    return address


def _decoded(line: bytes) -> list[object]:
    """ValueError if the line is damaged."""
    if line[:9] != b"%08x " % zlib.crc32(line[9:]):
        raise ValueError(f"the checksum of {line[:80]!r} does not fit")
    try:
        found = json.loads(line[9:])
    except RecursionError:
        raise ValueError(f"{line[:80]!r} is nested too deeply") from None
    return found if isinstance(found, list) else [found]


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
