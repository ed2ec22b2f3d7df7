"""WaitForRevision: answers when what a revision changed is in force everywhere, or names those that hold it up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from secgroups.controller.errors import InvalidError
from secgroups.v1 import ruleset_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.controller.agent_record import Standing
    from secgroups.controller.core import Core
    from secgroups.controller.publisher import Publisher

TIMEOUT_S = 10.0
TIMEOUT_MAX_S = 3600.0


async def wait_for_revision(core: Core, request: pb.WaitForRevisionRequest) -> pb.WaitForRevisionResponse:
    """Answer the request. InvalidError for a revision that is yet to come and a time-out out of bounds."""
    if request.revision > core.state.revision:
        raise InvalidError("revision", f"is {request.revision}, the controller is at {core.state.revision}")
    timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else TIMEOUT_S
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:
        raise InvalidError("timeout", f"is {timeout_s:g} s, must be 0 to {TIMEOUT_MAX_S:g} s")
    publisher = core.publisher
    standing = publisher.in_force(request.revision)
    try:
        async with asyncio.timeout(timeout_s):
            while standing.lagging:
                await _until_nobody_lags(publisher, standing, request.revision)
                standing = publisher.in_force(request.revision)
    except TimeoutError:
        standing = publisher.in_force(request.revision)
    return _response(standing)


async def _until_nobody_lags(publisher: Publisher, standing: Standing, revision: int) -> None:
    """Wait until each agent that lags has caught up once. Each acknowledgement costs a look at its own agent only."""
    done = asyncio.Event()
    lagging = {lag.agent_id for lag in standing.lagging}

    def look(agent_id: str) -> None:
        if not publisher.lags(agent_id, revision):
            lagging.discard(agent_id)
            if not lagging:
                done.set()

    unwatch = publisher.watch(lagging, look)
    try:
        await done.wait()
    finally:
        unwatch()


def _response(standing: Standing) -> pb.WaitForRevisionResponse:
    response = pb.WaitForRevisionResponse(
        in_force=not standing.lagging,
        lagging=[
            pb.LaggingAgent(
                agent_id=lag.agent_id, connected=lag.connected, applied_revision=lag.applied_revision, reason=lag.reason
            )
            for lag in standing.lagging
        ],
        agents_touched=standing.agents_touched,
    )
    if standing.commit_to_in_force_us is not None:
        response.commit_to_in_force.FromMicroseconds(standing.commit_to_in_force_us)
    return response
