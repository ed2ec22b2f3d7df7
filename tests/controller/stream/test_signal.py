"""A signal wakes the one that waits for it, now or when it comes, and lets nobody wait beside it."""

from __future__ import annotations

import asyncio

import pytest

from secgroups.controller.services.signal import Signal


async def test_whoever_comes_when_it_is_set_does_not_wait() -> None:
    signal = Signal()
    signal.set()
    await signal.wait()
    assert signal.is_set()


async def test_whoever_waits_is_woken_when_it_is_set_and_waits_again_after_it_was_cleared() -> None:
    signal = Signal()
    woken = 0

    async def wait_twice() -> None:
        nonlocal woken
        for _ in range(2):
            await signal.wait()
            signal.clear()
            woken += 1

    waiting = asyncio.create_task(wait_twice())
    await asyncio.sleep(0)
    assert woken == 0
    # Twice before it runs is once.
    signal.set()
    signal.set()
    await asyncio.sleep(0)
    assert (woken, signal.is_set()) == (1, False)
    signal.set()
    await waiting
    assert woken == 2


async def test_one_waits_at_a_time_and_who_gave_up_is_in_nobodys_way() -> None:
    signal = Signal()
    gave_up = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="waits for this signal already"):
        await signal.wait()
    gave_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    signal.set()
    await signal.wait()
