"""OperatorService: what keeps a controller going."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

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

    def __init__(self, database: Path) -> None:
        self._database = database
        self._is_copying = False
        for left in database.parent.glob(PART_GLOB):
            left.unlink(missing_ok=True)

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
