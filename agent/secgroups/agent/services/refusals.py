"""Errors of the agent as gRPC statuses with google.rpc details."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from secgroups.agent.errors import EnforcementError, FilterError, PacketError, TooManyTapsError, UntoldError

Refusal = PacketError | FilterError | TooManyTapsError | EnforcementError | UntoldError

_DOMAIN = "secgroups"
# What the kernel could not be asked now it may be asked again after this long.
_RETRY_S = 1


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: Refusal) -> NoReturn:
    """End the call with the status that says ``error``."""
    code, reason, detail = _told(error)
    status = status_pb2.Status(code=code, message=str(error))
    for each in (error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN), detail):
        packed = any_pb2.Any()
        packed.Pack(each)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status came back")


def _told(error: Refusal) -> tuple[int, str, Message]:
    if isinstance(error, TooManyTapsError):
        quota = error_details_pb2.QuotaFailure.Violation(subject="watches", description=str(error))
        return code_pb2.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", error_details_pb2.QuotaFailure(violations=[quota])
    if isinstance(error, UntoldError):
        violation = error_details_pb2.PreconditionFailure.Violation(type="NOT_TOLD", subject="reasons", description=str(error))
        return code_pb2.FAILED_PRECONDITION, "NOT_TOLD", error_details_pb2.PreconditionFailure(violations=[violation])
    if isinstance(error, EnforcementError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(_RETRY_S)
        return code_pb2.UNAVAILABLE, "KERNEL_NOT_READ", retry
    description = str(error).removeprefix(f"{error.field}: ")
    field = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
    return code_pb2.INVALID_ARGUMENT, "INVALID_VALUE", error_details_pb2.BadRequest(field_violations=[field])
