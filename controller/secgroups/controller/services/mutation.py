"""What every changing call has in common: one answer for one request id, a preview for ``validate_only``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from secgroups.controller.audit import actor_text
from secgroups.controller.convert import Checks, preview_message, request_id_of
from secgroups.controller.core import Core
from secgroups.controller.store.interface import RequestKey, Transaction
from secgroups.controller.trust.principals import caller

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]


def actor_of_call(context: Context) -> str:
    """Return what the change log keeps of who makes the call that is under way."""
    principal = caller.get()
    return actor_text(principal.key if principal else "", context.peer())


async def mutate(
    core: Core,
    request: Any,
    context: Context,
    checks: Checks,
    operation: Callable[[Transaction], T],
    answer_type: type[AnswerT],
    answer: Callable[[T, int], AnswerT],
) -> AnswerT:
    """Run ``operation`` for a request and return what ``answer`` makes of its value and revision.

    InvalidError with all that ``checks`` found wrong, before the store is asked. A request with a request id gets the answer that
    was given the first time, whatever has changed since.
    """
    key = None
    request_id = checks.take(request_id_of, getattr(request, "request_id", ""))
    checks.done()
    # What commits nothing has nothing to repeat.
    if request_id and not request.validate_only:
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        method = type(request).__name__
        key = RequestKey(project=request.project, method=method, request_id=request_id, fingerprint=fingerprint)
    made: list[AnswerT] = []

    def encode(value: T, revision: int) -> bytes:
        made.append(answer(value, revision))
        return made[0].SerializeToString()

    outcome = await core.change(
        operation,
        validate_only=request.validate_only,
        request=key,
        encode=encode,
        actor=actor_of_call(context),
    )
    if outcome.replayed is not None:
        return answer_type.FromString(outcome.replayed)
    response = made[0] if made else answer(outcome.value, outcome.revision)  # type: ignore[arg-type]
    if outcome.preview is not None:
        response.preview.CopyFrom(preview_message(outcome.preview))  # type: ignore[attr-defined]
    return response
