"""From a failed call to the error that people read: the status, and the google.rpc details in its trailers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from secgroups.cli.errors import CallError, UnreachableError


def refusal(call: grpc.Call, who: str, timeout_s: float) -> CallError:
    """Return the error for a failed ``call`` to ``who`` (for example "controller 127.0.0.1:7700")."""
    code = call.code()
    message = call.details() or "no reason given"
    details = _read_details(call)
    if code is grpc.StatusCode.UNAVAILABLE:
        if details is None:
            return UnreachableError(code.name, f"{who} can't be reached: {_last_error(message)}")
        return UnreachableError(code.name, _with_code(message, code, details), list(_lines(message, details)))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details is None:
        return CallError(code.name, f"{who} did not answer within {timeout_s:g} s")
    if code is grpc.StatusCode.UNIMPLEMENTED and details is None:
        return CallError(code.name, f"{who} does not know this call: {message}")
    return CallError(code.name, _with_code(message, code, details or []), list(_lines(message, details or [])))


def _last_error(message: str) -> str:
    """Return the cause from the middle of gRPC's own "failed to connect to all addresses; last error: ..."."""
    return message.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")


def _read_details(call: grpc.Call) -> list[Any] | None:
    """Return the details that this program knows, or None if there is no google.rpc.Status or it contradicts the plain one."""
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(call)
    except ValueError:
        return None
    if status is None:
        return None
    details = []
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2], None)
        if kind is not None and packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            details.append(detail)
    return details


def _with_code(message: str, code: grpc.StatusCode, details: list[Any]) -> str:
    reasons = [detail.reason for detail in details if detail.DESCRIPTOR.name == "ErrorInfo" and detail.reason]
    names = [code.name, *(reason for reason in reasons if reason != code.name)]
    return f"{message} ({', '.join(names)})"


def _lines(message: str, details: list[Any]) -> Iterator[str]:
    """Yield a line for each thing that the details name and the message does not."""
    for detail in details:
        for line in _DETAIL_LINES.get(detail.DESCRIPTOR.name, _no_lines)(detail):
            if line not in message:
                yield line


def _bad_request(detail: Any) -> Iterator[str]:
    for violation in detail.field_violations:
        yield f"{violation.field}: {violation.description}" if violation.field else violation.description


def _precondition(detail: Any) -> Iterator[str]:
    for violation in detail.violations:
        yield ": ".join(part for part in (violation.subject, violation.description) if part)


def _quota(detail: Any) -> Iterator[str]:
    for violation in detail.violations:
        yield ": ".join(part for part in (violation.subject, violation.description) if part)


def _resource(detail: Any) -> Iterator[str]:
    name = " ".join(part for part in (detail.resource_type, detail.resource_name) if part)
    yield ": ".join(part for part in (name, detail.description) if part)


def _info(detail: Any) -> Iterator[str]:
    for key in sorted(detail.metadata):
        yield f"{key}: {detail.metadata[key]}"


def _no_lines(detail: Any) -> Iterator[str]:
    return iter(())


_DETAIL_LINES = {
    "BadRequest": _bad_request,
    "PreconditionFailure": _precondition,
    "QuotaFailure": _quota,
    "ResourceInfo": _resource,
    "ErrorInfo": _info,
}
