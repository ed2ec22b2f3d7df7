"""WaitForRevision: answers when what a revision changed is in force everywhere, or names those that hold it up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from secgroups.controller.errors import InvalidError
from secgroups.controller.trust.principals import caller
from secgroups.v1 import ruleset_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.controller.agent_record import Standing
    from secgroups.controller.core import Core
    from secgroups.controller.obstacles import Obstacle
    from secgroups.controller.publisher import Publisher

TIMEOUT_S = 10.0
TIMEOUT_MAX_S = 3600.0
TENANT_REASON = "not in force there yet"
TENANT_ADVICE = "wait again, or ask who runs the controller"


async def wait_for_revision(core: Core, request: pb.WaitForRevisionRequest) -> pb.WaitForRevisionResponse:
    """Answer the request. InvalidError for a revision that is yet to come and a time-out out of bounds."""
    if request.revision > core.state.revision:
        raise InvalidError("revision", f"is {request.revision}, the controller is at {core.state.revision}")
    timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else TIMEOUT_S
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:
        raise InvalidError("timeout", f"is {timeout_s:g} s, must be 0 to {TIMEOUT_MAX_S:g} s")
    publisher = core.publisher
    # What has come into force by the time-out counts all the same.
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await _until_in_force(publisher, request.revision)
    standing = publisher.in_force(request.revision)
    principal = caller.get()
    if principal is None or principal.is_admin:
        return _response(standing)
    own = {server.agent_id for server in core.state.servers(principal.project)}
    return _without_others(standing, own)


async def _until_in_force(publisher: Publisher, revision: int) -> None:
    while not publisher.is_in_force(revision):
        news = asyncio.Event()
        unwatch = publisher.watch(revision, news.set)
        try:
            await news.wait()
        finally:
            unwatch()


def _response(standing: Standing) -> pb.WaitForRevisionResponse:
    lagging = [
        pb.LaggingAgent(
            agent_id=lag.agent_id,
            connected=lag.connected,
            applied_revision=lag.applied_revision,
            reason=_in_words(lag.obstacle),
        )
        for lag in standing.lagging
    ]
    response = pb.WaitForRevisionResponse(in_force=not lagging, lagging=lagging, agents_touched=standing.agents_touched)
    if standing.commit_to_in_force_us is not None:
        response.commit_to_in_force.FromMicroseconds(standing.commit_to_in_force_us)
    return response


def _without_others(standing: Standing, own_agent_ids: set[str]) -> pb.WaitForRevisionResponse:
    """Return what one project may know: of agents that guard its servers, and nothing of what others have there."""
    lagging = [lag for lag in standing.lagging if lag.agent_id in own_agent_ids]
    shown = [
        pb.LaggingAgent(agent_id=lag.agent_id, connected=lag.connected, reason=f"{TENANT_REASON}; {TENANT_ADVICE}")
        for lag in lagging
    ]
    return pb.WaitForRevisionResponse(in_force=not standing.lagging, lagging=shown, agents_touched=len(shown))


def _in_words(obstacle: Obstacle) -> str:
    detail = f" ({obstacle.detail})" if obstacle.detail else ""
    return f"{obstacle.reason}{detail}; {obstacle.advice}"
