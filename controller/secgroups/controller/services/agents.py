"""AgentService: the stream that feeds agents, and what is known of them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks
from secgroups.controller.convert import page_size_of, page_start, page_token, required, timestamp
from secgroups.controller.errors import NotFoundError
from secgroups.controller.metrics import Counts
from secgroups.controller.services.agent_stream import AgentStream
from secgroups.controller.services.pace import Pace
from secgroups.controller.services.stream_wire import Wire, held_back_message, rejected_message, report_message
from secgroups.controller.stream_settings import StreamSettings
from secgroups.controller.trust.principals import check_is_agent
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from secgroups.controller.agent_record import AgentStatus
    from secgroups.controller.core import Core

# What the pages of ListAgents are pages of; see ``page_token``.
_LIST = ("agents",)
SERVICE = pb.DESCRIPTOR.services_by_name["AgentService"]


class Agents(AgentServiceServicer):
    """The agents of ``core``."""

    def __init__(
        self, core: Core, settings: StreamSettings | None = None, clocks: Clocks = SYSTEM_CLOCKS, counts: Counts | None = None
    ) -> None:
        self._core = core
        self._counts = counts or Counts()
        self._clocks = clocks
        self._settings = settings or StreamSettings()
        self._wire = Wire(core.controller_id, self._settings.heartbeat_s)
        self._pace = Pace(lambda: core.waiting, clocks)

    async def Subscribe(self, request_iterator: AsyncIterator[bytes], context: Any) -> None:  # type: ignore[override]
        """Feed one agent, in bytes, through ``context``: messages are made of ready parts, and a write that hangs is given up."""
        counts = self._counts
        stream = AgentStream(context, self._core.publisher, self._wire, self._settings, self._pace, self._clocks, counts)
        await stream.run(check_is_agent)

    async def ListAgents(
        self, request: pb.ListAgentsRequest, context: grpc.aio.ServicerContext[pb.ListAgentsRequest, pb.ListAgentsResponse]
    ) -> pb.ListAgentsResponse:
        """Answer a page of agents."""
        publisher = self._core.publisher
        size = page_size_of(request.page_size)
        ids = publisher.agent_ids()
        first = bisect_right(ids, page_start(_LIST, request.page_token))
        page = ids[first : first + size]
        statuses = [status for agent_id in page if (status := publisher.find_status(agent_id)) is not None]
        return pb.ListAgentsResponse(
            agents=[self._message(status) for status in statuses],
            next_page_token=page_token(_LIST, page[-1]) if first + size < len(ids) else "",
            revision=self._core.state.revision,
        )

    async def GetAgent(
        self, request: pb.GetAgentRequest, context: grpc.aio.ServicerContext[pb.GetAgentRequest, pb.GetAgentResponse]
    ) -> pb.GetAgentResponse:
        """Answer one agent."""
        status = self._core.publisher.find_status(required(request.id, "id"))
        if status is None:
            message = f"there is no agent {request.id}: no server names it and it has not connected since the controller started"
            raise NotFoundError("agent", request.id, message=message)
        return pb.GetAgentResponse(agent=self._message(status), revision=self._core.state.revision)

    def _message(self, status: AgentStatus) -> pb.Agent:
        message = pb.Agent(
            id=status.agent_id,
            connected=status.connected,
            boot_id=status.boot_id,
            version=status.version,
            host=status.host,
            applied_revision=status.applied_revision,
            pending_revisions=status.pending_revisions,
            rejected=[rejected_message(rejected) for rejected in status.rejected],
            server_count=status.server_count,
        )
        if status.heard_clock_us is not None:
            message.staleness.FromMicroseconds(max(0, self._clocks.monotonic_us() - status.heard_clock_us))
        if status.connected_us is not None:
            message.connected_since.CopyFrom(timestamp(status.connected_us))
        if status.report is not None:
            message.report.CopyFrom(report_message(status.report))
            if status.report.clock_ahead_us is not None:
                message.clock_ahead.FromMicroseconds(status.report.clock_ahead_us)
        if status.held_back is not None:
            message.held_back.CopyFrom(held_back_message(status.held_back))
        if status.lag_since_us is not None:
            message.lag.FromMicroseconds(max(0, self._clocks.now_us() - status.lag_since_us))
        return message


def add_agents_to_server(agents: Agents, server: grpc.aio.Server) -> None:
    """Have ``server`` answer AgentService; what ``Subscribe`` carries passes as bytes."""
    handlers = {
        "Subscribe": grpc.stream_stream_rpc_method_handler(agents.Subscribe),
        "ListAgents": _unary(agents.ListAgents, pb.ListAgentsRequest),
        "GetAgent": _unary(agents.GetAgent, pb.GetAgentRequest),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))


def _unary(call: Any, request: type[Message]) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )
