"""WaitForRevision: answers when what a revision changed is in force everywhere, or names those that hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from secgroups.controller.errors import InvalidError
from secgroups.controller.trust.principals import caller
from secgroups.v1 import ruleset_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.controller.agent_record import Lag, Standing
    from secgroups.controller.core import Core
    from secgroups.controller.publisher import Publisher

TIMEOUT_S = 10.0
TIMEOUT_MAX_S = 3600.0
TENANT_REASON = "not in force there yet"
TENANT_ADVICE = "wait again, or ask who runs the controller"


async def wait_for_revision(core: Core, request: pb.WaitForRevisionRequest) -> pb.WaitForRevisionResponse:
    """Answer the request, to whoever is of one project as far as that is concerned.

    InvalidError for a revision that is yet to come and a time-out out of bounds.
    """
    if request.revision > core.state.revision:
        raise InvalidError("revision", f"is {request.revision}, the controller is at {core.state.revision}")
    timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else TIMEOUT_S
    if not 0 <= timeout_s <= TIMEOUT_MAX_S:
        raise InvalidError("timeout", f"is {timeout_s:g} s, must be 0 to {TIMEOUT_MAX_S:g} s")
    principal = caller.get()
    may_see_all = principal is None or principal.is_admin
    question = _Whole(core.publisher, request.revision)
    if principal is not None and not may_see_all:
        question = _Own(core.publisher, request.revision, principal.project)
    # What has come into force by the time-out counts all the same.
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await _until_in_force(question)
    return _response(question.standing(), _in_words if may_see_all else _in_words_for_tenants)


class _Whole:
    """How it stands with a revision."""

    def __init__(self, publisher: Publisher, revision: int) -> None:
        self._publisher = publisher
        self._revision = revision

    def is_in_force(self) -> bool:
        return self._publisher.is_in_force(self._revision)

    def standing(self) -> Standing:
        return self._publisher.in_force(self._revision)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        return self._publisher.watch(self._revision, watcher)


class _Own(_Whole):
    """The same, as far as one project is concerned."""

    def __init__(self, publisher: Publisher, revision: int, project: str) -> None:
        super().__init__(publisher, revision)
        self._project = project

    def is_in_force(self) -> bool:
        return self._publisher.own.is_in_force(self._project, self._revision)

    def standing(self) -> Standing:
        return self._publisher.own.standing(self._project, self._revision)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        return self._publisher.own.watch(self._project, self._revision, watcher)


async def _until_in_force(question: _Whole) -> None:
    while not question.is_in_force():
        news = asyncio.Event()
        unwatch = question.watch(news.set)
        try:
            await news.wait()
        finally:
            unwatch()


def _response(standing: Standing, in_words: Callable[[Lag], str]) -> pb.WaitForRevisionResponse:
    lagging = [
        pb.LaggingAgent(
            agent_id=lag.agent_id,
            connected=lag.connected,
            # It counts what others change.
            applied_revision=0 if in_words is _in_words_for_tenants else lag.applied_revision,
            reason=in_words(lag),
        )
        for lag in standing.lagging
    ]
    response = pb.WaitForRevisionResponse(in_force=not lagging, lagging=lagging, agents_touched=standing.agents_touched)
    if standing.commit_to_in_force_us is not None:
        response.commit_to_in_force.FromMicroseconds(standing.commit_to_in_force_us)
    return response


def _in_words(lag: Lag) -> str:
    obstacle = lag.obstacle
    detail = f" ({obstacle.detail})" if obstacle.detail else ""
    return f"{obstacle.reason}{detail}; {obstacle.advice}"


def _in_words_for_tenants(_: Lag) -> str:
    """Say nothing of what others have on the same agent."""
    return f"{TENANT_REASON}; {TENANT_ADVICE}"
