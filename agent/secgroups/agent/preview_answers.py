"""Answers the controller's previews: what an update would cut, counted in slices so that no verdict waits for long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc

from secgroups.agent.convert import ruleset_update
from secgroups.agent.errors import BaseVersionError, UnenforceableError
from secgroups.agent.firewall import Firewall
from secgroups.v1 import agent_service_pb2 as pb

# The controller asks four at a time. Those that nobody waits for any more end by their time-out.
PREVIEWS_MAX = 8
TIMEOUT_DEFAULT_S = 1.0
TIMEOUT_MAX_S = 60.0

Say = Callable[[pb.SubscribeRequest], Awaitable[object]]

_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


class PreviewAnswers:
    """The previews that are being counted, at most ``PREVIEWS_MAX``; more are refused."""

    def __init__(self, firewall: Firewall, clock: Callable[[], int]) -> None:
        self._firewall = firewall
        self._clock = clock
        self._counting: set[asyncio.Task[None]] = set()

    async def take(self, request: pb.PreviewRequest, say: Say) -> None:
        """Begin to count; ``say``, which raises nothing, is called with the answer, now if the preview is refused."""
        if len(self._counting) >= PREVIEWS_MAX:
            refused = _uncounted(request.id, _RESOURCE_EXHAUSTED, f"{PREVIEWS_MAX} previews are being counted, the most allowed")
            await say(pb.SubscribeRequest(preview_result=refused))
            return
        task = asyncio.create_task(self._answer(request, say))
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    def close(self) -> None:
        """Give up all that is being counted."""
        for task in self._counting:
            task.cancel()

    async def _answer(self, request: pb.PreviewRequest, say: Say) -> None:
        await say(pb.SubscribeRequest(preview_result=await self._counted(request)))

    async def _counted(self, request: pb.PreviewRequest) -> pb.PreviewResult:
        timeout_s = min(request.timeout.ToNanoseconds() / 1e9, TIMEOUT_MAX_S)
        if timeout_s <= 0:
            timeout_s = TIMEOUT_DEFAULT_S
        revision = self._firewall.ruleset.revision
        found = 0
        try:
            async with asyncio.timeout(timeout_s):
                for counted in self._firewall.counting_cut(ruleset_update(request.update), self._clock()):
                    found = counted
                    # Packets and messages that came meanwhile have their turn.
                    await asyncio.sleep(0)
        except UnenforceableError as error:
            return _uncounted(request.id, _UNIMPLEMENTED, str(error))
        except BaseVersionError as error:
            return _uncounted(request.id, _FAILED_PRECONDITION, str(error))
        except TimeoutError:
            return _uncounted(request.id, _DEADLINE_EXCEEDED, f"not counted within {timeout_s:g} s")
        return pb.PreviewResult(id=request.id, flows_cut=found, revision=revision)


def _uncounted(preview_id: int, code: int, message: str) -> pb.PreviewResult:
    return pb.PreviewResult(id=preview_id, code=code, message=message)
