"""Saving what is in force while the disk has its moods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from structlog.testing import capture_logs

from secgroups.agent.cache import FILE_NAME, Cache
from secgroups.agent.cache_writer import CacheWriter
from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions
from secgroups.agent.replica import Replica
from secgroups.v1 import agent_service_pb2 as pb

TIMEOUT_S = 10.0


def in_sync(revision: int) -> Replica:
    """Return what has nothing in force, as of a revision."""
    replica = Replica(Firewall(now_ns=0))
    replica.welcome(pb.Welcome(store_epoch="e", timeline_id="t", mode=pb.SYNC_MODE_SNAPSHOT))
    replica.sync_point(pb.SyncPoint(nonce=1, revision=revision, state_digest=HeldVersions().digest, snapshot_end=True), 0)
    return replica


def saved_revision(cache: Cache) -> int:
    state = cache.load()
    return state.ruleset.revision if state is not None else 0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.001)


async def test_what_could_not_be_saved_is_saved_when_the_disk_takes_it_again(tmp_path: Path) -> None:
    replica = Replica(Firewall(now_ns=0))
    cache = Cache(tmp_path, "a")
    writer = CacheWriter(cache, replica, interval_s=0.005)
    obstacle = tmp_path / f"{FILE_NAME}.new"
    obstacle.mkdir()
    with capture_logs() as lines:
        running = asyncio.create_task(writer.run())
        writer.note()
        await until(lambda: len(lines) > 0)
        await asyncio.sleep(0.05)
        obstacle.rmdir()
        await until(lambda: len(lines) > 1)
    # Said once, however often it is tried.
    assert [line["event"] for line in lines] == ["cache_not_written", "cache_written_again"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (tmp_path / FILE_NAME).exists()
    cache.close()


async def test_a_revision_that_changed_nothing_is_saved_now_and_then(tmp_path: Path) -> None:
    cache, replica = Cache(tmp_path, "a"), in_sync(7)
    writer = CacheWriter(cache, replica, interval_s=0.001, revision_interval_s=0.005)
    running = asyncio.create_task(writer.run())
    for revision in (8, 9):
        replica.bookmark(pb.Bookmark(revision=revision))
        await until(lambda revision=revision: saved_revision(cache) == revision)
    written = (tmp_path / FILE_NAME).stat().st_ino
    # It has nothing to write any more, however often it looks: the next revision is the next file.
    await asyncio.sleep(0.05)
    assert (tmp_path / FILE_NAME).stat().st_ino == written
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    cache.close()


async def test_a_revision_that_changed_nothing_is_saved_at_the_end(tmp_path: Path) -> None:
    cache, replica = Cache(tmp_path, "a"), in_sync(7)
    writer = CacheWriter(cache, replica)
    await writer.finish()
    assert not (tmp_path / FILE_NAME).exists(), "what it began with is saved already"
    replica.bookmark(pb.Bookmark(revision=8))
    await writer.finish()
    assert saved_revision(cache) == 8
    cache.close()
