"""VerdictService.WatchVerdicts: what a tap takes, message by message, until the caller or the agent ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc

from secgroups.agent.errors import EnforcementError, FilterError, TooManyTapsError, UntoldError
from secgroups.agent.flow import Reason
from secgroups.agent.services.refusals import refuse
from secgroups.agent.tap import JoinedTap
from secgroups.agent.verdict_messages import event_message, tap_settings_of, verdict_filter_of
from secgroups.v1 import verdict_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.agent.firewall import Firewall
    from secgroups.agent.kernel.taps import KernelTaps
    from secgroups.agent.tap import Tap, TapSettings
    from secgroups.agent.verdict_filter import VerdictFilter

POLL_S = 0.05
# So many verdicts are looked at, and at most so many told, before others have their turn: a few milliseconds.
BATCH_EVENTS = 256
# What comes faster than this for each poll is left to the tap, which drops it: eight watches that want everything must leave time
# for verdicts. A message takes about 35 us, looking at a verdict that is not wanted a tenth of that.
POLL_BATCHES_MAX = 8
POLL_TOLD_MAX = 256

# What goes on all the time the kernel does not tell of.
_UNTOLD_BY_KERNEL = frozenset({Reason.ESTABLISHED, Reason.RELATED, Reason.ESSENTIAL})

Context = grpc.aio.ServicerContext[pb.WatchVerdictsRequest, pb.WatchVerdictsResponse]


class Watches:
    """Watches of the verdicts of ``firewall``, and of the kernel's if it enforces.

    ``clock`` gives monotonic, ``wall_clock`` Unix nanoseconds.
    """

    def __init__(
        self,
        firewall: Firewall,
        clock: Callable[[], int],
        wall_clock: Callable[[], int] = time.time_ns,
        kernel: KernelTaps | None = None,
    ) -> None:
        self._firewall = firewall
        self._kernel = kernel
        self._clock = clock
        self._wall_clock = wall_clock
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End all watches within ``POLL_S``, with UNAVAILABLE."""
        self._stopped.set()

    async def watch(self, request: pb.WatchVerdictsRequest, context: Context) -> AsyncIterator[pb.WatchVerdictsResponse]:
        """Yield the wanted verdicts.

        Ends the call with INVALID_ARGUMENT, FAILED_PRECONDITION, RESOURCE_EXHAUSTED or UNAVAILABLE if it can't be.
        """
        try:
            wanted = verdict_filter_of(request)
            tap = await self._open(wanted, tap_settings_of(request, wanted))
        except (FilterError, UntoldError, TooManyTapsError, EnforcementError) as error:
            await refuse(context, error)
        # Not left to the end of this generator: a call that is cancelled while it sends leaves it to be collected some time.
        context.add_done_callback(lambda _: tap.close())  # type: ignore[arg-type] # its stub asks for a class that nobody can make
        yield pb.WatchVerdictsResponse()
        told_dropped = 0
        while not self._stopped.is_set():
            async for response in self._polled(tap, wanted, told_dropped):
                told_dropped = response.dropped
                yield response
            await asyncio.sleep(POLL_S)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the agent stops")

    async def _open(self, wanted: VerdictFilter, how: TapSettings) -> Tap:
        untold = wanted.reasons & _UNTOLD_BY_KERNEL
        if untold and self._kernel is not None:
            raise UntoldError(
                f"the kernel does not tell of {', '.join(reason.name for reason in sorted(untold))}: "
                "of packets that it allows it tells of those that open something, NEW, and of all that it denies"
            )
        own = self._firewall.watch(how.events_max, one_in=how.one_in, allowed=how.allowed)
        if self._kernel is None:
            return own
        try:
            return JoinedTap((own, await self._kernel.open(how)))
        except BaseException:
            own.close()
            raise

    async def _polled(self, tap: Tap, wanted: VerdictFilter, told_dropped: int) -> AsyncIterator[pb.WatchVerdictsResponse]:
        """Yield what has come since the last poll, and what was dropped even if nothing is wanted of what has come."""
        offset_ns = self._wall_clock() - self._clock()
        told = 0
        for _ in range(POLL_BATCHES_MAX):
            batch = tap.read(BATCH_EVENTS)
            events = [event_message(event, offset_ns) for event in batch if wanted.matches(event)]
            if events or tap.dropped != told_dropped:
                told_dropped = tap.dropped
                yield pb.WatchVerdictsResponse(events=events, dropped=told_dropped)
            told += len(events)
            if len(batch) < BATCH_EVENTS or told >= POLL_TOLD_MAX:
                return
            await asyncio.sleep(0)
