"""VerdictService.ListFlows: the flow table, message by message, while packets go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING

from secgroups.agent.errors import EnforcementError, FilterError
from secgroups.agent.flow_filter import FlowFilter
from secgroups.agent.flow_messages import flow_filter_of, flow_message
from secgroups.agent.services.refusals import refuse
from secgroups.agent.tracking import Flow
from secgroups.v1 import verdict_service_pb2 as pb

if TYPE_CHECKING:
    import grpc

    from secgroups.agent.firewall import Firewall

# So many flows are looked at, and at most so many told, before others have their turn: a few milliseconds.
BATCH_FLOWS = 256


Source = Callable[[str], AsyncGenerator[list[Flow], None]]


async def tracked_by(firewall: Firewall, clock: Callable[[], int], server: str) -> AsyncGenerator[list[Flow], None]:
    """Yield the flows that ``firewall`` tracks, all or those of ``server``, others having their turn in between."""
    # The engine picks the server only: with a filter that fits few it would go through all of its table for the next flow.
    live = firewall.live(clock(), FlowFilter(server=server))
    while batch := list(islice(live, BATCH_FLOWS)):
        yield batch
        await asyncio.sleep(0)


async def list_flows(
    source: Source,
    clock: Callable[[], int],
    request: pb.ListFlowsRequest,
    context: grpc.aio.ServicerContext[pb.ListFlowsRequest, pb.ListFlowsResponse],
) -> AsyncIterator[pb.ListFlowsResponse]:
    """Yield the wanted ones of what ``source`` yields for a server, or for all if it is empty.

    Ends the call with INVALID_ARGUMENT that names the field of a bad filter, and with UNAVAILABLE if the kernel does not tell.
    """
    try:
        wanted = flow_filter_of(request)
    except FilterError as error:
        await refuse(context, error)
    left = request.limit
    # Closed with the call, not when it is collected some time: it may hold a socket.
    async with aclosing(source(wanted.server)) as batches:
        try:
            async for batch in batches:
                now_ns = clock()
                flows = [flow for flow in batch if wanted.matches(flow) and not flow.is_over(now_ns)]
                if request.limit:
                    flows = flows[:left]
                    left -= len(flows)
                if flows:
                    yield pb.ListFlowsResponse(flows=[flow_message(flow, now_ns) for flow in flows])
                if request.limit and not left:
                    return
        except EnforcementError as error:
            await refuse(context, error)
