"""Refusals of values, with the details that clients can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    import grpc

    from secgroups.agent.errors import PacketError


async def refuse(error: PacketError, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    """End the call with INVALID_ARGUMENT that names the field."""
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error))
    description = str(error).removeprefix(f"{error.field}: ")
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
    for detail in (
        error_details_pb2.ErrorInfo(reason="INVALID_VALUE", domain="secgroups"),
        error_details_pb2.BadRequest(field_violations=[violation]),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status came back")
