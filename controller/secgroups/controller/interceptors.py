"""Around every call: errors of the controller become gRPC statuses with details, and one line tells how the call went.

Handlers are coroutines; those that stream write to their context.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from secgroups.controller.errors import (
    AlreadyExistsError,
    ControllerError,
    GroupInUseError,
    InvalidError,
    LimitError,
    NotFoundError,
    OverloadError,
    PreconditionError,
    RequestError,
    StaleEtagError,
    StoreUnavailableError,
)
from secgroups.controller.logs import is_logged

if TYPE_CHECKING:
    from secgroups.controller.metrics import Counts

log = structlog.get_logger(__name__)

DOMAIN = "secgroups"
# All of a status travels in trailers, which many clients take up to 8 KiB: the message once as it is (percent-encoded) and once
# within the details, which are encoded by a third longer.
MESSAGE_BYTES_MAX = 1_536
STATUS_BYTES_MAX = 4_096
VIOLATIONS_MAX = 50
_TEXT_CHARACTERS_MAX = 256

_OWN_SERVICES = "/secgroups.v1."
_STATUS_KEY = "grpc-status-details-bin"
# Thousands a second; logged at debug if they go well.
_READS = ("Get", "List", "Explain")
_USES = {"server": "is attached to it", "rule": "names it as remote"}


def status_of(error: ControllerError) -> Status:
    """Return an error as google.rpc.Status: ErrorInfo always, and what its kind has to say. Never above ``STATUS_BYTES_MAX``."""
    status = Status(code=grpc.StatusCode[error.code].value[0], message=_message_of(error))
    info = details.ErrorInfo(reason=error.reason if isinstance(error, RequestError) else _reason_of(error), domain=DOMAIN)
    info.metadata.update({key: _cut(value, _TEXT_CHARACTERS_MAX) for key, value in _facts(error)})
    status.details.add().Pack(info)
    match error:
        case InvalidError(violations=violations):
            field_violations = [
                details.BadRequest.FieldViolation(field=field, description=text) for field, text in _shown_violations(violations)
            ]
            more = details.BadRequest.FieldViolation
            fitting = _fitting(status, field_violations, lambda text: more(description=text))
            status.details.add().Pack(details.BadRequest(field_violations=fitting))
        case NotFoundError() | AlreadyExistsError() | StaleEtagError():
            name = _cut(error.key, _TEXT_CHARACTERS_MAX)
            description = _cut(str(error), _TEXT_CHARACTERS_MAX)
            status.details.add().Pack(details.ResourceInfo(resource_type=error.kind, resource_name=name, description=description))
        case PreconditionError():
            failed = details.PreconditionFailure.Violation
            users = [
                failed(type=error.reason, subject=subject, description=description) for subject, description in _obstacles(error)
            ]
            fitting_users = _fitting(status, users, lambda text: failed(type=error.reason, description=text))
            status.details.add().Pack(details.PreconditionFailure(violations=fitting_users))
        case LimitError():
            subject = _cut(error.subject, _TEXT_CHARACTERS_MAX)
            quota = details.QuotaFailure.Violation(subject=subject, description=f"{error.limit} is {error.most}")
            status.details.add().Pack(details.QuotaFailure(violations=[quota]))
            if isinstance(error, OverloadError):
                status.details.add().Pack(_retry_info(error.retry_after_s))
        case StoreUnavailableError():
            status.details.add().Pack(_retry_info(error.retry_after_s))
    return status


def _retry_info(retry_after_s: float) -> details.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(round(retry_after_s * 1e9))
    return details.RetryInfo(retry_delay=delay)


def _reason_of(error: ControllerError) -> str:
    return "STORE_UNAVAILABLE" if isinstance(error, StoreUnavailableError) else error.code


def _facts(error: ControllerError) -> Iterator[tuple[str, str]]:
    """Yield what programs want to know of an error beyond its reason."""
    match error:
        case AlreadyExistsError(row=row):
            yield from (("kind", error.kind), ("id", error.key))
            if row is not None:
                yield "row", str(row)
        case NotFoundError() | StaleEtagError():
            yield from (("kind", error.kind), ("id", error.key))
        case PreconditionError():
            yield "subject", error.subject
        case LimitError():
            yield from (("limit", error.limit), ("most", str(error.most)))


def _obstacles(error: PreconditionError) -> Iterable[tuple[str, str]]:
    """Return as subject and description what stands against the change."""
    if isinstance(error, GroupInUseError):
        return [(f"{kind}/{key}", _USES[kind]) for kind, key in error.users]
    return [(error.subject, str(error))]


def _shown_violations(violations: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for violation in violations:
        yield _cut(violation.field, _TEXT_CHARACTERS_MAX), _cut(violation.message, _TEXT_CHARACTERS_MAX)


def _message_of(error: ControllerError) -> str:
    if not isinstance(error, InvalidError) or len(error.violations) == 1:
        return _cut(str(error), MESSAGE_BYTES_MAX)
    texts = [f"{field}: {text}" for field, text in _shown_violations(error.violations[:VIOLATIONS_MAX])]
    room = MESSAGE_BYTES_MAX - len("; and 10000 more")
    kept = sum(1 for size in accumulate(_wire_size(text) + 2 for text in texts) if size <= room)
    left_out = len(error.violations) - kept
    return "; ".join([*texts[:kept], *([f"and {left_out} more"] if left_out else [])])


def _fitting(status: Status, violations: Sequence[Message], more: Callable[[str], Message]) -> list[Any]:
    """Return as many violations as there is room for in a status, the last one saying how many more there are."""
    room = STATUS_BYTES_MAX - status.ByteSize() - 128
    sizes = accumulate(violation.ByteSize() + 4 for violation in violations[:VIOLATIONS_MAX])
    kept = sum(1 for size in sizes if size <= room)
    left_out = len(violations) - kept
    return [*violations[:kept], *([more(f"and {left_out} more")] if left_out else [])]


def _cut(text: str, bytes_max: int) -> str:
    """Return text that takes no more than ``bytes_max`` as a trailer, where all but plain ASCII is percent-encoded."""
    start = text[:bytes_max]
    if len(start) == len(text) and _wire_size(text) <= bytes_max:
        return text
    room = bytes_max - 3
    kept = sum(1 for size in accumulate(map(_wire_size, start)) if size <= room)
    return start[:kept] + "..."


def _wire_size(text: str) -> int:
    if text.isascii() and text.isprintable() and "%" not in text:
        return len(text)
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode(errors="replace"))


class ErrorsAndLog(grpc.aio.ServerInterceptor):
    """Wraps the calls of the product's own services, each handler once; health and reflection pass as they are.

    Reads that go well are logged at the level debug. ``counts`` counts them all.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, wrapped."""
        method = str(handler_call_details.method)
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(_OWN_SERVICES):
            return handler
        self._wrapped[method] = _wrapped(method, handler, self._counts)
        return self._wrapped[method]


def _wrapped(method: str, handler: grpc.RpcMethodHandler[Any, Any], counts: Counts) -> grpc.RpcMethodHandler[Any, Any]:
    make: Any
    if handler.request_streaming:
        make, call = grpc.stream_stream_rpc_method_handler, handler.stream_stream
    elif handler.response_streaming:
        make, call = grpc.unary_stream_rpc_method_handler, handler.unary_stream
    else:
        make, call = grpc.unary_unary_rpc_method_handler, handler.unary_unary
    made: grpc.RpcMethodHandler[Any, Any] = make(
        _guarded(method.removeprefix(_OWN_SERVICES), call, counts, is_unary=not handler.response_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def _guarded(method: str, call: Any, counts: Counts, *, is_unary: bool) -> Any:
    level = logging.DEBUG if method.partition("/")[2].startswith(_READS) else logging.INFO

    def count(code: str, started_ns: int) -> None:
        counts.calls[method, code] += 1
        if is_unary:
            counts.unary.add((time.perf_counter_ns() - started_ns) // 1000)

    async def handle(request: Any, context: Any) -> Any:
        started_ns = time.perf_counter_ns()
        try:
            response = await call(request, context)
        except ControllerError as error:
            count(error.code, started_ns)
            status = status_of(error)
            _log(logging.INFO, method, error.code, request, context, started_ns, reason=status.message)
            await abort(context, status)
        except asyncio.CancelledError:
            count("CANCELLED", started_ns)
            _log(logging.INFO, method, "CANCELLED", request, context, started_ns)
            raise
        except grpc.aio.AbortError:
            count(_code_name(context), started_ns)
            _log(logging.INFO, method, _code_name(context), request, context, started_ns)
            raise
        except Exception:
            incident = str(uuid.uuid4())
            count("INTERNAL", started_ns)
            log.exception("rpc_crashed", method=method, incident=incident, peer=context.peer())
            await abort(context, _internal(incident))
        count("OK", started_ns)
        if is_logged(level):
            _log(level, method, "OK", request, context, started_ns, revision=getattr(response, "revision", None))
        return response

    return handle


def _internal(incident: str) -> Status:
    """Return what a caller is told of a bug: nothing but where to look."""
    status = Status(code=grpc.StatusCode.INTERNAL.value[0], message=f"internal error; the log has it as incident {incident}")
    status.details.add().Pack(details.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"incident": incident}))
    return status


async def abort(context: Any, status: Status) -> NoReturn:
    """End a call with a status."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, trailing_metadata=((_STATUS_KEY, status.SerializeToString()),))
    raise AssertionError("abort never returns")


def _code_name(context: Any) -> str:
    """Return the code with which a handler has aborted: a number, or none yet."""
    code = context.code()
    return next((known.name for known in grpc.StatusCode if code in (known, known.value[0])), str(code))


def _log(level: int, method: str, code: str, request: Any, context: Any, started_ns: int, **facts: Any) -> None:
    duration_us = (time.perf_counter_ns() - started_ns) // 1000
    project = getattr(request, "project", None)
    log.log(level, "rpc_answered", method=method, code=code, duration_us=duration_us, peer=context.peer(), project=project, **facts)
