"""Saving what is in force while the disk has its moods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from structlog.testing import capture_logs

from secgroups.agent.cache import FILE_NAME, Cache
from secgroups.agent.cache_writer import CacheWriter
from secgroups.agent.firewall import Firewall
from secgroups.agent.replica import Replica

TIMEOUT_S = 10.0


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
