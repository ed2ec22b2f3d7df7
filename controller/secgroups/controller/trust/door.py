"""Before the gate: what is decided as soon as a call is announced, before there is a message of it.

gRPC waits for the message of a call for as long as it takes, and counts the call meanwhile. So whoever is not known is turned away
at once, and whoever is known holds no more calls than its own share: nobody can hold all that there are.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from secgroups.controller.errors import InvalidError, OverloadError, RequestError
from secgroups.controller.interceptors import abort, status_of
from secgroups.controller.trust.gate import OPEN, shown_certificate, token_in
from secgroups.controller.trust.principals import unauthenticated

if TYPE_CHECKING:
    from secgroups.controller.metrics import Counts
    from secgroups.controller.trust.credentials import Credentials
    from secgroups.controller.trust.quotas import CallRates

log = structlog.get_logger(__name__)

# Calls under way at one time: of one agent, and of all together who ask for health and say not who they are.
CALLS_PER_AGENT_MAX = 1_024
CALLS_OF_ANYBODY_MAX = 256
# From the beginning of a call to its message, where that is waited for here.
MESSAGE_TIMEOUT_S = 10.0
RETRY_S = 1.0
# One line of the log for each code.
TELL_EVERY_S = 1.0

_ANYBODY = ""


class Door(grpc.aio.ServerInterceptor):
    """Lets in whose token is good, ``calls_max`` of each at one time, as often as ``rates`` allow; others have to show more.

    Agents have ``agent_rates``.
    """

    def __init__(self, credentials: Credentials, rates: CallRates, agent_rates: CallRates, calls_max: int, counts: Counts) -> None:
        self._credentials = credentials
        self._rates = rates
        self._agent_rates = agent_rates
        self._calls_max = calls_max
        self._counts = counts
        self._under_way: Counter[str] = Counter()
        self._told_s: dict[str, float] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call if its token is good, otherwise one that does not wait for a message before it looks."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        token = token_in(handler_call_details.invocation_metadata or ())
        principal = self._credentials.find_token(token) if token and method not in OPEN else None
        if principal is None:
            return _without_waiting(handler, partial(self._look, handler, method))
        try:
            self._rates.take(principal.key)
            self._begin(principal.key, self._calls_max)
        except OverloadError as error:
            return _without_waiting(handler, partial(self._turn_away, method, error))
        return handler

    def _begin(self, key: str, most: int) -> None:
        """Count the call that the current task is, until its end. OverloadError if it is one too many."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is a task")
        if self._under_way[key] >= most:
            message = f"{most} calls are under way, the most allowed at one time for one caller; wait for their answers"
            raise OverloadError("calls", message, limit="calls_at_one_time", most=most, retry_after_s=RETRY_S)
        self._under_way[key] += 1
        task.add_done_callback(lambda _: self._end(key))

    def _end(self, key: str) -> None:
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]

    async def _look(self, handler: Any, method: str, requests: Any, context: Any) -> None:
        """Let in an agent, and whoever asks for health."""
        try:
            self._begin(*self._share_of(method, context))
        except RequestError as error:
            await self._turn_away(method, error, requests, context)
        if handler.request_streaming:
            await _relay(handler.stream_stream, requests, context)
            return
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT_S):
                request = await context.read()
        except TimeoutError:
            request = grpc.aio.EOF
        if request is grpc.aio.EOF:
            missing = InvalidError("request", f"did not come within {MESSAGE_TIMEOUT_S:g} s")
            await self._turn_away(method, missing, requests, context)
        await _relay(handler.unary_stream or handler.unary_unary, request, context)

    def _share_of(self, method: str, context: Any) -> tuple[str, int]:
        """Return for whom a call counts, and how many of those there may be. OverloadError, UnauthenticatedError."""
        if method in OPEN:
            return _ANYBODY, CALLS_OF_ANYBODY_MAX
        certificate = context.auth_context().get("x509_pem_cert")
        found = shown_certificate(certificate[0]) if certificate else None
        agent = self._credentials.find_agent(found) if found else None
        if agent is None:
            raise unauthenticated()
        self._agent_rates.take(agent.key)
        return agent.key, CALLS_PER_AGENT_MAX

    async def _turn_away(self, method: str, error: RequestError, _: Any, context: Any) -> None:
        name = method.removeprefix("/secgroups.v1.")
        self._counts.calls[name, error.code] += 1
        # Whoever knocks a thousand times a second must not fill the disk as well: the counts tell how many there were.
        now_s = time.monotonic()
        if now_s - self._told_s.get(error.code, -TELL_EVERY_S) >= TELL_EVERY_S:
            self._told_s[error.code] = now_s
            log.info("call_turned_away", method=name, code=error.code, peer=context.peer(), reason=str(error))
        await abort(context, status_of(error))


def _without_waiting(handler: Any, call: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """Return what calls ``call`` as soon as a call begins: on the wire a single message is a stream of one."""
    made: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
    return made


async def _relay(call: Any, request: Any, context: Any) -> None:
    """Answer a call to its handler: one that returns its answer, writes its answers, or yields them."""
    if inspect.isasyncgenfunction(call) or (isinstance(call, partial) and inspect.isasyncgenfunction(call.func)):
        async for each in call(request, context):
            await context.write(each)
        return
    answer = call(request, context)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is not None:
        await context.write(answer)
