"""Streams take turns: changes for many agents hold up nothing else that the event loop has to do, and answers hold up no news."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from secgroups.controller.clocks import Clocks
from secgroups.controller.services.pace import (
    ANSWER_WAIT_MAX_S,
    CATCH_UP_STREAMS,
    ROUND_S,
    TURN_STREAMS,
    TURN_STREAMS_ALONE,
    Pace,
)
from secgroups.controller.store_writer import BATCH_MAX

PRESSING = BATCH_MAX + 1


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def clocks(self) -> Clocks:
        return Clocks(monotonic_ns=lambda: self.now_ns)

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.mark.parametrize(("mutations", "turn"), [(0, TURN_STREAMS_ALONE), (1, TURN_STREAMS), (BATCH_MAX, TURN_STREAMS)])
async def test_streams_are_woken_in_order_and_others_are_served_between_the_turns(mutations: int, turn: int) -> None:
    pace = Pace(lambda: mutations)
    woken: list[int] = []
    seen: list[int] = []

    def look() -> None:
        seen.append(len(woken))
        if len(woken) < 5 * turn:
            asyncio.get_running_loop().call_soon(look)

    for number in range(5 * turn):
        pace.wake(lambda number=number: woken.append(number))
    look()
    while len(woken) < 5 * turn:
        await asyncio.sleep(0)
    assert woken == list(range(5 * turn))
    assert set(seen) == {turns * turn for turns in range(6)}


async def test_under_pressure_everybody_has_one_turn_in_a_round() -> None:
    clock = Clock()
    pace = Pace(lambda: PRESSING, clock.clocks())
    streams, woken = 1_000, [0] * 1_000

    def ask(number: int) -> None:
        """Have a turn, and want the next one at once, as with changes that never end."""

        def take_turn() -> None:
            woken[number] += 1
            ask(number)

        pace.wake(take_turn)

    for number in range(streams):
        ask(number)
    turns = 200
    for _ in range(turns):
        clock.pass_s(ROUND_S / turns)
        pace._turn()
    # The fraction of a turn that is left at the end is the next one's.
    assert sum(woken) == pytest.approx(streams, abs=1)
    assert max(woken) == 1


async def test_under_pressure_what_can_not_be_made_up_for_in_a_turn_is_let_go() -> None:
    clock = Clock()
    pace = Pace(lambda: PRESSING, clock.clocks())
    woken: list[int] = []
    for number in range(1_000):
        pace.wake(lambda number=number: woken.append(number))
    clock.pass_s(3_600)
    pace._turn()
    pace._turn()
    assert woken == list(range(CATCH_UP_STREAMS))


async def test_pressure_ends_with_the_mutations_that_wait() -> None:
    waiting = PRESSING
    pace = Pace(lambda: waiting)
    woken: list[int] = []
    for number in range(10):
        pace.wake(lambda number=number: woken.append(number))
    await asyncio.sleep(0)
    waiting = 0
    await until(lambda: len(woken) == 10)
    assert woken == list(range(10))


async def test_a_lone_wake_after_a_rest_comes_at_once() -> None:
    pace = Pace()
    for _ in range(100):
        woken = asyncio.Event()
        pace.wake(woken.set)
        await asyncio.sleep(0)
        assert woken.is_set()
        await asyncio.sleep(0)


async def test_answers_are_read_when_all_who_wait_have_been_sent_to() -> None:
    clock = Clock()
    pace = Pace(clocks=clock.clocks())
    order: list[str] = []
    # Nobody waits: nothing to wait for.
    await pace.until_told()

    async def answer() -> None:
        await pace.until_told()
        order.append("answer")

    for _ in range(5 * TURN_STREAMS_ALONE):
        pace.wake(lambda: order.append("told"))
    answers = [asyncio.create_task(answer()) for _ in range(3 * TURN_STREAMS_ALONE)]
    await asyncio.gather(*answers)
    assert [name for name, _ in itertools.groupby(order)] == ["told", "answer"]
    assert order.count("told") == 5 * TURN_STREAMS_ALONE


async def test_an_answer_is_put_off_for_so_long_only() -> None:
    clock = Clock()
    pace = Pace(clocks=clock.clocks())

    def again() -> None:
        pace.wake(again)

    for _ in range(TURN_STREAMS_ALONE + 1):
        again()
    answer = asyncio.create_task(pace.until_told())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not answer.done()
    clock.pass_s(ANSWER_WAIT_MAX_S + 0.001)
    await asyncio.wait_for(answer, 10)


async def test_under_pressure_answers_are_read_as_they_come() -> None:
    waiting = 0
    pace = Pace(lambda: waiting)

    def again() -> None:
        pace.wake(again)

    for _ in range(TURN_STREAMS_ALONE + 1):
        again()
    early = asyncio.create_task(pace.until_told())
    await asyncio.sleep(0)
    waiting = PRESSING
    await asyncio.wait_for(early, 10)
    await asyncio.wait_for(pace.until_told(), 10)


async def test_a_reader_that_is_gone_keeps_nobody_from_being_read() -> None:
    pace = Pace()
    for _ in range(3 * TURN_STREAMS_ALONE):
        pace.wake(lambda: None)
    gone, other = (asyncio.create_task(pace.until_told()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(other, 10)
    assert gone.cancelled()


async def test_a_stream_that_fails_in_its_turn_does_not_keep_the_others_from_theirs() -> None:
    pace = Pace()
    woken: list[int] = []

    def fail() -> None:
        raise RuntimeError("of one stream alone")

    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    pace.wake(fail)
    for number in range(3 * TURN_STREAMS_ALONE):
        pace.wake(lambda number=number: woken.append(number))
    await until(lambda: len(woken) == 3 * TURN_STREAMS_ALONE)
    assert [str(failure) for failure in failures] == ["of one stream alone"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)
