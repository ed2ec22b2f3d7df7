"""Streams take turns on a budget: changes for many agents do not hold up what else the event loop has to do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from secgroups.controller.clocks import Clocks
from secgroups.controller.services.pace import BURST_S, DEBT_MAX_S, SHARE, TURN_STREAMS, Pace

WAKE_NS = 5_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def clocks(self) -> Clocks:
        return Clocks(monotonic_ns=lambda: self.now_ns)


async def test_streams_are_woken_in_order_and_others_are_served_between_the_turns() -> None:
    pace = Pace()
    woken: list[int] = []
    seen: list[int] = []

    def look() -> None:
        seen.append(len(woken))
        if len(woken) < 5 * TURN_STREAMS:
            asyncio.get_running_loop().call_soon(look)

    for number in range(5 * TURN_STREAMS):
        pace.wake(lambda number=number: woken.append(number))
    look()
    while len(woken) < 5 * TURN_STREAMS:
        await asyncio.sleep(0)
    assert woken == list(range(5 * TURN_STREAMS))
    assert {turn * TURN_STREAMS for turn in range(1, 5)} <= set(seen)


async def test_what_wakes_take_is_taken_from_a_budget_that_fills_up_with_time() -> None:
    clock = Clock()
    pace = Pace(clock.clocks())
    woken: list[int] = []

    def wake(number: int) -> None:
        woken.append(number)
        clock.now_ns += WAKE_NS

    for number in range(1_000):
        pace.wake(lambda number=number: wake(number))
    most = math.ceil(BURST_S / (1 - SHARE) / (WAKE_NS / 1e9)) + TURN_STREAMS
    await settled(woken)
    assert most / 2 < len(woken) <= most
    for _ in range(3):
        # A second passes in which nothing is sent.
        clock.now_ns += 1_000_000_000
        before = len(woken)
        await until(lambda before=before: len(woken) > before)
        await settled(woken)
        assert len(woken) - before <= most
    assert woken == list(range(len(woken)))


async def test_a_lone_wake_after_a_rest_comes_at_once() -> None:
    clock = Clock()
    pace = Pace(clock.clocks())
    for _ in range(100):
        woken = asyncio.Event()
        pace.wake(woken.set)
        await asyncio.sleep(0)
        assert woken.is_set()
        await asyncio.sleep(0)
        clock.now_ns += 1_000_000


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def settled(woken: list[int]) -> None:
    """Wait until nobody is woken any more without time passing."""
    before = -1
    while len(woken) != before:
        before = len(woken)
        for _ in range(10):
            await asyncio.sleep(0)


async def test_a_stream_that_fails_in_its_turn_does_not_keep_the_others_from_theirs() -> None:
    pace = Pace()
    woken: list[int] = []

    def fail() -> None:
        raise RuntimeError("of one stream alone")

    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    pace.wake(fail)
    for number in range(3 * TURN_STREAMS):
        pace.wake(lambda number=number: woken.append(number))
    await until(lambda: len(woken) == 3 * TURN_STREAMS)
    assert [str(failure) for failure in failures] == ["of one stream alone"]


async def test_a_turn_in_which_the_process_stood_still_holds_up_the_next_one_for_a_moment_only() -> None:
    clock = Clock()
    pace = Pace(clock.clocks())
    woken: list[str] = []

    def stand_still() -> None:
        clock.now_ns += 3_600_000_000_000

    pace.wake(stand_still)
    await settled(woken)
    pace.wake(lambda: woken.append("next"))
    clock.now_ns += round(DEBT_MAX_S / SHARE * 1e9)
    await until(lambda: bool(woken))
