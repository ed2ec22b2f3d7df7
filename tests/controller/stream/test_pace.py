"""Streams take turns: a change for many agents does not hold up what else the event loop has to do, and news rest under load."""

from __future__ import annotations

import asyncio

from secgroups.controller.clocks import Clocks
from secgroups.controller.services.pace import REST_MAX_S, TURN_STREAMS, Pace

LEAST_S = 0.005


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


async def test_a_stream_rests_the_least_when_nobody_waits() -> None:
    pace = Pace()
    woken = asyncio.Event()
    pace.wake(woken.set)
    await woken.wait()
    assert pace.rest_s(LEAST_S) == LEAST_S


async def test_the_rest_grows_with_the_wait_for_a_turn_up_to_a_bound_and_shrinks_again() -> None:
    clock = Clock()
    pace = Pace(clock.clocks())

    async def rounds(count: int, wait_s: float) -> float:
        for _ in range(count):
            woken = asyncio.Event()
            pace.wake(woken.set)
            clock.now_ns += int(wait_s * 1e9)
            await woken.wait()
        return pace.rest_s(LEAST_S)

    assert LEAST_S < await rounds(10, 0.05) < 0.05
    assert await rounds(10, 1.0) == REST_MAX_S
    assert await rounds(30, 0.0) == LEAST_S
