"""From a failed call to the error that people read: the status, and the google.rpc details in its trailers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc

from secgroups.cli.errors import CallError, UnreachableError

# Of what something is said, and what.
Facts = Iterator[tuple[str, str]]


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
        for subject, said in _FACTS.get(detail.DESCRIPTOR.name, _no_facts)(detail):
            if not _is_told(said or subject, message):
                yield ": ".join(part for part in (subject, said) if part)


def _is_told(fact: str, message: str) -> bool:
    """True if ``fact`` stands in ``message``, or each part of a reference like server/w1 does."""
    words = [fact] if fact in message else fact.split("/")
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words)


def _bad_request(detail: Any) -> Facts:
    return ((violation.field, violation.description) for violation in detail.field_violations)


def _subjects(detail: Any) -> Facts:
    return ((violation.subject, violation.description) for violation in detail.violations)


def _resource(detail: Any) -> Facts:
    yield " ".join(part for part in (detail.resource_type, detail.resource_name) if part), detail.description


def _info(detail: Any) -> Facts:
    return ((key, detail.metadata[key]) for key in sorted(detail.metadata))


def _no_facts(detail: Any) -> Facts:
    return iter(())


_FACTS = {
    "BadRequest": _bad_request,
    "PreconditionFailure": _subjects,
    "QuotaFailure": _subjects,
    "ResourceInfo": _resource,
    "ErrorInfo": _info,
}
