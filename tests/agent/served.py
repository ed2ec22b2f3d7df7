"""An agent's VerdictService on a loopback socket, with a firewall and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from agent_world import World
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from secgroups.agent.server import AgentServer
from secgroups.agent.services.verdicts import Verdicts
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

PATIENCE_S = 30


def server_of(world: World) -> AgentServer:
    """Return a server, not started, of the verdicts of ``world``. It knows nothing of a controller."""
    nobody = SimpleNamespace(revision=0, from_cache=False, held_back=None, connected=False, last_heard_ns=None)
    return AgentServer("127.0.0.1:0", Verdicts("a1", world.firewall, nobody, nobody, clock=lambda: world.now_ns))


@asynccontextmanager
async def served(world: World) -> AsyncIterator[Any]:
    """Serve the verdicts of ``world``; gives a stub."""
    server = server_of(world)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield VerdictServiceStub(channel)
    finally:
        await server.stop(0)


async def refusal(calling: Any) -> tuple[str, str, dict[str, Any]]:
    """Return status, message and details (by their type) with which a call or stream ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in calling:
            pass
    status = rpc_status.from_call(_as_call(caught.value))
    details = {}
    for packed in status.details:
        detail = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])()
        packed.Unpack(detail)
        details[type(detail).__name__] = detail
    return caught.value.code().name, caught.value.details(), details


def _as_call(error: grpc.aio.AioRpcError) -> Any:
    return SimpleNamespace(trailing_metadata=lambda: list(error.trailing_metadata()), code=error.code, details=error.details)
