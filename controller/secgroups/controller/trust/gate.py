"""The gate that every call passes: who calls, whether that may be, and the end of streams whose ground has gone.

One question about health is open to everybody. What goes on for as long as somebody likes is for who is known: the watch of it, and
reflection. Channelz is for admins.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509
from grpc_health.v1 import health

from secgroups.controller.clocks import SYSTEM_CLOCKS
from secgroups.controller.errors import OverloadError, RequestError, UnauthenticatedError
from secgroups.controller.interceptors import abort, status_of
from secgroups.controller.trust.authority import find_agent_id
from secgroups.controller.trust.principals import ACCESS, Needs, Principal, ShownCertificate, caller, check, unauthenticated

if TYPE_CHECKING:
    from secgroups.controller.trust.credentials import Credentials

_BEARER = "bearer "
_HEALTH = f"/{health.SERVICE_NAME}/"
OPEN = frozenset({f"{_HEALTH}Check", f"{_HEALTH}List"})
_REFLECTION = "/grpc.reflection."
# One answer, which may be an hour away: held as a stream is.
_LONG_WAITS = frozenset({"/secgroups.v1.RulesetService/WaitForRevision"})
# When a stream of the same caller may have ended.
STREAMS_RETRY_S = 1.0
# The clock may be set, and stands still for a machine that sleeps.
LOOK_EVERY_S = 60.0
# An agent needs one; those of a connection that broke stay until that is noticed.
STREAMS_PER_AGENT_MAX = 64


class Sessions:
    """The streams that go on, by the key of who opened them, to be ended when that is revoked or expires.

    At most ``streams_max`` of one token, ``STREAMS_PER_AGENT_MAX`` of one agent.
    """

    def __init__(
        self, streams_max: int, now_us: Callable[[], int] = SYSTEM_CLOCKS.now_us, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        """``now_us`` is the time of day; it is looked at every ``look_every_s``, for it may be set."""
        self._streams_max = streams_max
        self._now_us = now_us
        self._look_every_s = look_every_s
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    def end(self, key: str) -> None:
        """End the streams of somebody."""
        for task in self._tasks.get(key, ()):
            self._end(task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._ended.add(task)
        task.cancel()

    @contextmanager
    def of(self, principal: Principal) -> Iterator[None]:
        """Hold the stream that the current task is. UnauthenticatedError if it is ended from here, OverloadError for too many."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is a task")
        most = STREAMS_PER_AGENT_MAX if principal.agent_id else self._streams_max
        if len(self._tasks.get(principal.key, ())) >= most:
            message = f"{most} streams are open, the most allowed at one time for one caller; end some"
            raise OverloadError("streams", message, limit="streams_per_principal", most=most, retry_after_s=STREAMS_RETRY_S)
        self._tasks.setdefault(principal.key, set()).add(task)
        expiry = _Expiry(partial(self._end, task), principal.expires_us, self._now_us, self._look_every_s)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise unauthenticated() from None
        finally:
            expiry.cancel()
            self._ended.discard(task)
            held = self._tasks[principal.key]
            held.discard(task)
            if not held:
                del self._tasks[principal.key]


class _Expiry:
    """Calls ``end`` when the time of day is ``expires_us``, if it is not None, whatever the clock did meanwhile."""

    def __init__(self, end: Callable[[], None], expires_us: int | None, now_us: Callable[[], int], look_every_s: float) -> None:
        self._end = end
        self._now_us = now_us
        self._look_every_s = look_every_s
        self._timer: asyncio.Handle | None = None
        if expires_us is not None:
            self._look(expires_us)

    def _look(self, expires_us: int) -> None:
        left_s = (expires_us - self._now_us()) / 1e6
        loop = asyncio.get_running_loop()
        if left_s <= 0:
            # Not from within: whoever is ended has to be waiting.
            self._timer = loop.call_soon(self._end)
            return
        self._timer = loop.call_later(min(left_s, self._look_every_s), self._look, expires_us)

    def cancel(self) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()


class Gate(grpc.aio.ServerInterceptor):
    """Asks who calls: whoever shows a certificate is an agent, all others have to send a token."""

    def __init__(self, credentials: Credentials, sessions: Sessions) -> None:
        self._credentials = credentials
        self._sessions = sessions
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, behind the gate."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method in OPEN:
            return handler
        self._wrapped[method] = self._guarded(handler, needs_of(method), waits_long=method in _LONG_WAITS)
        return self._wrapped[method]

    def _guarded(self, handler: Any, needs: Needs, *, waits_long: bool) -> grpc.RpcMethodHandler[Any, Any]:
        forms = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        call, make = forms[handler.request_streaming, handler.response_streaming]
        guarded: Any
        if not handler.response_streaming:
            guarded = partial(self._wait if waits_long else self._one, call, needs)
        elif inspect.isasyncgenfunction(call):
            guarded = partial(self._generated, call, needs)
        else:
            guarded = partial(self._stream, call, needs)
        made: grpc.RpcMethodHandler[Any, Any] = make(
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return made

    async def _one(self, call: Any, needs: Needs, request: Any, context: Any) -> Any:
        await self._let_in(needs, request, context)
        answer = call(request, context)
        return await answer if inspect.isawaitable(answer) else answer

    async def _wait(self, call: Any, needs: Needs, request: Any, context: Any) -> Any:
        principal = await self._let_in(needs, request, context)
        try:
            with self._sessions.of(principal):
                return await call(request, context)
        except (UnauthenticatedError, OverloadError) as error:
            await abort(context, status_of(error))

    async def _stream(self, call: Any, needs: Needs, request: Any, context: Any) -> None:
        principal = await self._let_in(needs, request, context)
        try:
            with self._sessions.of(principal):
                await call(request, context)
        except (UnauthenticatedError, OverloadError) as error:
            await abort(context, status_of(error))

    async def _generated(self, call: Any, needs: Needs, request: Any, context: Any) -> AsyncIterator[Any]:
        principal = await self._let_in(needs, request, context)
        try:
            with self._sessions.of(principal):
                async for answer in call(request, context):
                    yield answer
        except (UnauthenticatedError, OverloadError) as error:
            await abort(context, status_of(error))

    async def _let_in(self, needs: Needs, request: Any, context: Any) -> Principal:
        try:
            principal = self._principal_of(context)
            check(principal, needs, request)
        except RequestError as error:
            await abort(context, status_of(error))
        caller.set(principal)
        return principal

    def _principal_of(self, context: Any) -> Principal:
        """Return who makes a call. UnauthenticatedError."""
        shown = context.auth_context()
        if certificate := shown.get("x509_pem_cert"):
            found = shown_certificate(certificate[0])
            principal = self._credentials.find_agent(found) if found else None
        else:
            token = token_in(context.invocation_metadata())
            principal = self._credentials.find_token(token) if token else None
        if principal is None:
            raise unauthenticated()
        return principal


def needs_of(method: str) -> Needs:
    """Return what a call needs; of services that are not ours, health and reflection apart, the role admin.

    KeyError if the table has it not.
    """
    if method.startswith((_REFLECTION, _HEALTH)):
        return Needs.ANYBODY
    return ACCESS[method] if method.startswith("/secgroups.") else Needs.ADMIN


def token_in(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the bearer token of a call, None if none was sent."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return None


def shown_certificate(certificate_pem: bytes) -> ShownCertificate | None:
    """Return what a certificate says that TLS has verified; None if it names no agent."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    agent_id = find_agent_id(certificate)
    if agent_id is None:
        return None
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return ShownCertificate(
        agent_id=agent_id,
        serial=f"{certificate.serial_number:x}",
        begins_us=int(begin.timestamp()) * 1_000_000,
        expires_us=int(end.timestamp()) * 1_000_000,
    )
