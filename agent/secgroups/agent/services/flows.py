"""VerdictService.ListFlows: the flow table, message by message, while packets go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import TYPE_CHECKING

from secgroups.agent.errors import FilterError
from secgroups.agent.flow_filter import FlowFilter
from secgroups.agent.flow_messages import flow_filter_of, flow_message
from secgroups.agent.services.refusals import refuse
from secgroups.v1 import verdict_service_pb2 as pb

if TYPE_CHECKING:
    import grpc

    from secgroups.agent.firewall import Firewall

# So many flows are looked at, and at most so many told, before others have their turn: a few milliseconds.
BATCH_FLOWS = 256


async def list_flows(
    firewall: Firewall,
    clock: Callable[[], int],
    request: pb.ListFlowsRequest,
    context: grpc.aio.ServicerContext[pb.ListFlowsRequest, pb.ListFlowsResponse],
) -> AsyncIterator[pb.ListFlowsResponse]:
    """Yield the wanted flows. Ends the call with INVALID_ARGUMENT that names the field of a bad filter."""
    try:
        wanted = flow_filter_of(request)
    except FilterError as error:
        await refuse(context, error)
    # The engine picks the server only: with a filter that fits few it would go through all of its table for the next flow.
    live = firewall.live(clock(), FlowFilter(server=wanted.server))
    left = request.limit
    while batch := list(islice(live, BATCH_FLOWS)):
        now_ns = clock()
        flows = [flow for flow in batch if wanted.matches(flow) and not flow.is_over(now_ns)]
        if request.limit:
            flows = flows[:left]
            left -= len(flows)
        if flows:
            yield pb.ListFlowsResponse(flows=[flow_message(flow, now_ns) for flow in flows])
        if request.limit and not left:
            return
        await asyncio.sleep(0)
