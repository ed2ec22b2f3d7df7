"""An event loop whose time jumps to the next timer, with processes on it that can be killed or paused between any two steps.

A callback belongs to the process in whose context it was scheduled. Within a process callbacks run in the order that asyncio
promises; of several processes a seeded draw says who runs next. A killed process runs nothing any more: no cleanup, no ``finally``.
No sockets, no threads: what asks for a thread runs on the loop, some time later. Everything is a function of the seed.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

# What a step costs at most, in seconds; and now and then one takes long (a pause of the interpreter, a busy machine).
STEP_S_MAX = 40e-6
LONG_STEP_S_MAX = 0.02
LONG_STEPS_ONE_IN = 500
# What a thread takes at most to begin, and its result to come back.
THREAD_S_MAX = 0.004
START_S = 1_000.0


class StuckError(Exception):
    """Nothing is left to do, and what was waited for has not come."""


class Process:
    """A simulated process: what was started in ``context`` and everything that came of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.steps = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        self._fuse: tuple[int, Callable[[], None]] | None = None

    def after_steps(self, steps: int, blow: Callable[[], None]) -> None:
        """Call ``blow`` when so many more steps of this process have run: at any place where it waits."""
        self._fuse = (self.steps + steps, blow)

    def stepped(self) -> None:
        """Count a step."""
        self.steps += 1
        if self._fuse is not None and self.steps >= self._fuse[0]:
            _, blow = self._fuse
            self._fuse = None
            blow()

    @property
    def live_tasks(self) -> list[asyncio.Task[Any]]:
        self.tasks = [task for task in self.tasks if not task.done()]
        return self.tasks


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory."""

    number = 0

    def __hash__(self) -> int:
        return self.number


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


def _process_of(handle: asyncio.Handle) -> Process | None:
    context: Context = handle._context  # type: ignore[attr-defined]
    return context.get(PROCESS)


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. ``random`` decides about order and delays. ``outside`` is the context of what belongs to no process."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.outside = copy_context()
        self.failures: list[str] = []
        # Raised before the next step, if set.
        self.halt: Exception | None = None
        self._now_s = START_S
        self._clock_resolution = 1e-9
        self._queues: dict[Process | None, deque[asyncio.Handle]] = {}
        self._tasks_made = 0
        self._everybody: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._now_s

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run ``main`` to its end."""
        asyncio.set_event_loop(self)
        try:
            self.run_until_complete(self.create_task(main))
        finally:
            self._bury()
            self.close()
            asyncio.set_event_loop(None)

    def start(self, process: Process, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of a process."""
        return self.create_task(main, context=process.context)

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call back in no process: the world goes on when the one who asked is dead."""
        return self.call_later(delay_s, callback, *args, context=self.outside)

    # What asyncio asks of a loop.

    def run_forever(self) -> None:
        """Run until stopped. Asynchronous generators are not finalised: nothing here depends on it."""
        self._check_closed()
        asyncio.events._set_running_loop(self)
        try:
            while not self._stopping:  # type: ignore[has-type]
                self._run_once()
        finally:
            self._stopping = False
            asyncio.events._set_running_loop(None)

    def _run_once(self) -> None:
        if self.halt is not None:
            raise self.halt
        self._take_due()
        able = [process for process, queue in self._queues.items() if queue and not (process is not None and process.paused)]
        if not able:
            if not self._scheduled:  # type: ignore[attr-defined]
                raise StuckError("nothing is left to do")
            self._now_s = max(self._now_s, self._scheduled[0]._when)  # type: ignore[attr-defined]
            return
        process = able[0] if len(able) == 1 else self.random.choice(able)
        queue = self._queues[process]
        handle = queue.popleft()
        if not queue:
            del self._queues[process]
        if handle._cancelled:  # type: ignore[attr-defined]
            return
        self._now_s += self.random.random() * STEP_S_MAX
        if not self.random.randrange(LONG_STEPS_ONE_IN):
            self._now_s += self.random.random() * LONG_STEP_S_MAX
        handle._run()  # type: ignore[attr-defined]
        if process is not None:
            process.stepped()

    def _take_due(self) -> None:
        """Put what is ready, or due by now, into the queue of its process; what is of a dead one is forgotten."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        ready = self._ready  # type: ignore[attr-defined]
        while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._now_s):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        while ready:
            handle = ready.popleft()
            process = _process_of(handle)
            if not handle._cancelled and (process is None or process.alive):
                self._queues.setdefault(process, deque()).append(handle)

    def kill(self, process: Process) -> None:
        """End a process where it stands."""
        process.alive = False
        self._queues.pop(process, None)

    def timers(self, process: Process) -> int:
        """Return how many timers a process has set."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sum(_process_of(handle) is process and not handle.cancelled() for handle in scheduled)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing: it is dropped when its time comes."""

    def _write_to_self(self) -> None:
        """Nothing: there is no other thread to be woken from."""

    def _process_events(self, event_list: object) -> None:
        """Nothing: there are no sockets."""

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run ``func`` as a thread would, at some later time; if its process is killed before that, never."""
        outcome: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                self.call_later(self.random.random() * THREAD_S_MAX, tell, outcome.set_exception, error)
            else:
                self.call_later(self.random.random() * THREAD_S_MAX, tell, outcome.set_result, result)

        def tell(say: Callable[[Any], None], what: Any) -> None:
            if not outcome.done():
                say(what)

        self.call_later(self.random.random() * THREAD_S_MAX, work)
        return outcome

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
        task = NumberedTask.__new__(NumberedTask)
        self._tasks_made += 1
        # It is in a set from its first moment on.
        task.number = self._tasks_made
        task.__init__(coro, loop=loop, context=context)  # type: ignore[misc]
        process = (context or copy_context()).get(PROCESS)
        if process is not None:
            process.tasks.append(task)
        # Held until the end: a dead process's coroutines must not be closed, which would run their cleanup.
        self._everybody.append(task)
        if len(self._everybody) > 4_096:
            self._everybody = [task for task in self._everybody if not task.done()]
        return task

    def _note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context.get('message')}: {error!r}")

    def _bury(self) -> None:
        """Close what is left of all coroutines, quietly."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in self._everybody:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    # What it does when it is closed means nothing any more.
                    with suppress(Exception):
                        task.get_coro().close()  # type: ignore[union-attr]
            self._everybody.clear()
            self._queues.clear()
        finally:
            sys.unraisablehook = hook
