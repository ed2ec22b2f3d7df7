"""OperatorService: what keeps a controller going."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import structlog

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks
from secgroups.controller.convert import timestamp
from secgroups.controller.errors import PreconditionError, StoreUnavailableError
from secgroups.controller.store.backup import PART_GLOB, copy
from secgroups.v1 import operator_service_pb2 as pb
from secgroups.v1.operator_service_pb2_grpc import OperatorServiceServicer

log = structlog.get_logger(__name__)

CHUNK_BYTES = 1 << 20
# A copy takes room on the disk for as long as somebody reads it.
BACKUP_TIMEOUT_S = 3_600.0


class OperatorService(OperatorServiceServicer):
    """For the controller whose database is ``database``."""

    def __init__(self, database: Path, revision: Callable[[], int], clocks: Clocks = SYSTEM_CLOCKS) -> None:
        self._database = database
        self._revision = revision
        self._clocks = clocks
        self._is_copying = False
        for left in database.parent.glob(PART_GLOB):
            left.unlink(missing_ok=True)

    async def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext[pb.GetStatusRequest, pb.GetStatusResponse]
    ) -> pb.GetStatusResponse:
        """Answer at once; StoreUnavailableError if the disk can't be asked."""
        try:
            database_bytes, disk_free_bytes, disk_bytes = await asyncio.to_thread(self._sizes)
        except OSError as error:
            raise StoreUnavailableError(f"the disk of the database can't be asked for its room: {error.strerror}") from None
        return pb.GetStatusResponse(
            version=version("secgroups"),
            revision=self._revision(),
            time=timestamp(self._clocks.now_us()),
            database_bytes=database_bytes,
            disk_free_bytes=disk_free_bytes,
            disk_bytes=disk_bytes,
        )

    def _sizes(self) -> tuple[int, int, int]:
        disk = os.statvfs(self._database.parent)
        # What only root may take does not count as free.
        free, whole = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        written_ahead = self._database.with_name(f"{self._database.name}-wal")
        sizes = [file.stat().st_size for file in (self._database, written_ahead) if file.exists()]
        return sum(sizes), free, whole

    async def Backup(self, request: pb.BackupRequest, context: Any) -> None:  # type: ignore[override]
        """Write to ``context``, so that whoever reads slowly keeps no more than a part in memory."""
        if self._is_copying:
            raise PreconditionError("backup", "a backup is under way; wait until it is done")
        self._is_copying = True
        part = self._database.with_name(f"backup-{os.getpid()}.part")
        try:
            async with asyncio.timeout(BACKUP_TIMEOUT_S):
                await self._send(part, context)
        except TimeoutError:
            raise StoreUnavailableError(f"the backup was not taken within {BACKUP_TIMEOUT_S:.0f} s") from None
        finally:
            self._is_copying = False
            with suppress(OSError):
                part.unlink(missing_ok=True)

    async def _send(self, part: Path, context: Any) -> None:
        copying = asyncio.create_task(asyncio.to_thread(copy, self._database, part))
        try:
            copied = await asyncio.shield(copying)
        except asyncio.CancelledError:
            # The thread goes on, and would leave its file behind.
            with suppress(StoreUnavailableError):
                await copying
            raise
        head = pb.BackupHead(revision=copied.revision, store_epoch=copied.store_epoch, size_bytes=copied.size_bytes)
        await context.write(pb.BackupResponse(head=head))
        digest = hashlib.sha256()
        with part.open("rb") as file:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                digest.update(data)
                await context.write(pb.BackupResponse(data=data))
        await context.write(pb.BackupResponse(sha256=digest.digest()))
        log.info("backup_sent", revision=copied.revision, size_bytes=copied.size_bytes)
