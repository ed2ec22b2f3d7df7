"""The last good state on disk, so that an agent enforces it before, and without, the controller.

A file is written beside the old one, synced and renamed, so there is always one whole file. Its header says how long the rest is
and what it hashes to: what does not fit is set aside under another name and never used in part. A file that may be good and is not
for this start (of another agent or format, or that can't be read now) is left as it is: somebody has to say what to do with it.

Layout, little-endian: magic (8 bytes), format version (u32), length of the rest (u64), SHA-256 of the rest (32 bytes); then the
length of a first message (u32), a ``secgroups.v1.Hello`` with agent id, store epoch, timeline and revision, and a
``secgroups.v1.Update`` with all that is in force.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from secgroups.agent import convert
from secgroups.agent.cache_pieces import Pieces
from secgroups.agent.errors import CacheError, ConfigError, UnenforceableError
from secgroups.agent.ruleset import Ruleset
from secgroups.v1 import agent_service_pb2 as pb

FILE_NAME = "ruleset.cache"
LOCK_NAME = "lock"
DAMAGED_MAX = 5

_MAGIC = b"SECGRPAG"
_FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sIQ32s")
_LENGTH = struct.Struct("<I")

# What is in the place of the file is none, and will not become one.
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedState:
    """What was in force, of which store epoch and timeline. Its revision is that of the ruleset.

    ``timeline_id`` is empty in a file of a program that knew of none.
    """

    store_epoch: str
    ruleset: Ruleset
    timeline_id: str = ""


class Cache:
    """The cache of one agent in its own folder."""

    def __init__(self, folder: Path, agent_id: str) -> None:
        """Lock ``folder`` for as long as this lives. ConfigError if it can't be written or another agent uses it."""
        self._agent_id = agent_id
        self.folder = folder
        self._file = folder / FILE_NAME
        self._pieces = Pieces()
        try:
            if not folder.is_dir():
                raise ConfigError(f"state_dir {folder} {'is not a directory' if folder.exists() else 'does not exist; make it'}")
            self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"state_dir {folder} can't be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"state_dir {folder} is in use by another agent") from None

    def close(self) -> None:
        """Let another agent use the folder."""
        os.close(self._lock)

    def load(self) -> CachedState | None:
        """Return what was saved, None if nothing was.

        CacheError if it is damaged; then it should be set aside. ConfigError if it may be good, and can't be used by this start.
        """
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NO_FILE:
                raise CacheError(f"{self._file} can't be read: {error.strerror}") from None
            raise ConfigError(
                f"state_dir: {self._file} can't be read: {error.strerror}; it is left as it is, start again when it can be read"
            ) from None
        try:
            return self._decoded(memoryview(content))
        except (CacheError, ConfigError) as error:
            raise type(error)(f"{self._file} {error}") from None

    def set_aside(self) -> Path:
        """Rename the file so that it can be looked at; of several the oldest makes room. OSError if that fails."""
        names = [self.folder / f"{FILE_NAME}.damaged-{number}" for number in range(1, DAMAGED_MAX + 1)]
        free = next((name for name in names if not name.exists()), None)
        target = free or min(names, key=lambda name: name.stat().st_mtime_ns)
        # A directory can be in the place of either, and can't be renamed over a file nor a file over it.
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        self._file.replace(target)
        return target

    def save(self, state: CachedState) -> None:
        """Write ``state`` durably in place of what was saved. OSError if that fails; the old file is then still whole."""
        new = self.folder / f"{FILE_NAME}.new"
        try:
            with new.open("wb") as file:
                self._write(file, state)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)
        except OSError:
            # Half a file is of no use, and on a full disk it would take what room others may find.
            with suppress(OSError):
                new.unlink()
            raise
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, file: BinaryIO, state: CachedState) -> None:
        """Write ``state`` to a new file, the header last: it tells the hash of all that comes after it."""
        hello = pb.Hello(
            agent_id=self._agent_id,
            store_epoch=state.store_epoch,
            timeline_id=state.timeline_id,
            applied_revision=state.ruleset.revision,
        )
        head = hello.SerializeToString()
        digest = sha256()
        file.seek(_HEADER.size)
        for chunk in chain([_LENGTH.pack(len(head)) + head], self._pieces.chunks(state.ruleset)):
            digest.update(chunk)
            file.write(chunk)
        length = file.tell() - _HEADER.size
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _FORMAT_VERSION, length, digest.digest()))

    def _decoded(self, content: memoryview) -> CachedState:
        if len(content) < _HEADER.size:
            raise CacheError(f"is torn: {len(content)} bytes are less than its header")
        magic, version, length, digest = _HEADER.unpack_from(content)
        payload = content[_HEADER.size :]
        if magic != _MAGIC:
            raise CacheError("is not a cache of an agent")
        if version != _FORMAT_VERSION:
            raise ConfigError(
                f"has format version {version}, this agent reads {_FORMAT_VERSION}; start the version of the agent that wrote it,"
                " or move the file away to start without it"
            )
        if len(payload) != length:
            raise CacheError(f"is torn: {len(payload)} bytes of {length}")
        if sha256(payload).digest() != digest:
            raise CacheError("is damaged: its checksum does not fit")
        try:
            end = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
            hello = pb.Hello.FromString(bytes(payload[_LENGTH.size : end]))
            update = pb.Update.FromString(bytes(payload[end:]))
            ruleset = Ruleset(
                revision=update.revision,
                sets={held.group_id: convert.address_set(held) for held in update.sets},
                groups={held.group_id: convert.group_rules(held) for held in update.groups},
                servers={held.server: convert.server_binding(held) for held in update.servers},
            )
        except (struct.error, DecodeError, UnenforceableError) as error:
            raise CacheError(f"can't be understood: {error}") from None
        if hello.agent_id != self._agent_id:
            raise ConfigError(
                f"is of agent {hello.agent_id}, this is {self._agent_id}; correct agent_id or state_dir,"
                " or move the file away to start without it"
            )
        return CachedState(store_epoch=hello.store_epoch, timeline_id=hello.timeline_id, ruleset=ruleset)
