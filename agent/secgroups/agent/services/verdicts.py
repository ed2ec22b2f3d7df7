"""VerdictService: asks the firewall of this agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from secgroups.agent.convert import held_back_message
from secgroups.agent.errors import EnforcementError, PacketError
from secgroups.agent.figures import stats_of
from secgroups.agent.kernel.counters import KernelCounts
from secgroups.agent.kernel.explain import explain_in_kernel
from secgroups.agent.kernel.flows import KernelFlows
from secgroups.agent.kernel.taps import KernelTaps
from secgroups.agent.packets import explanation_message, packet_of
from secgroups.agent.services.decide_stream import DecideStream
from secgroups.agent.services.flows import list_flows, tracked_by
from secgroups.agent.services.refusals import refuse
from secgroups.agent.services.watch import Watches
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceServicer

if TYPE_CHECKING:
    import grpc

    from secgroups.agent.counters import RuleCount
    from secgroups.agent.firewall import Firewall
    from secgroups.agent.flow import Packet
    from secgroups.agent.kernel.enforcer import KernelEnforcer
    from secgroups.agent.replica import Replica
    from secgroups.agent.subscription import Subscription


class Verdicts(VerdictServiceServicer):
    """Verdicts of ``firewall``; ``clock`` gives monotonic nanoseconds."""

    def __init__(
        self,
        agent_id: str,
        firewall: Firewall,
        replica: Replica,
        subscription: Subscription,
        clock: Callable[[], int] = time.monotonic_ns,
        kernel: KernelEnforcer | None = None,
    ) -> None:
        self._agent_id = agent_id
        self._firewall = firewall
        self._replica = replica
        self._subscription = subscription
        self._clock = clock
        self._kernel = kernel
        self._kernel_flows = (
            KernelFlows(lambda: kernel.ruleset, essential=kernel.settings.essential_services, clock=clock)
            if kernel is not None
            else None
        )
        flows = self._kernel_flows
        self._kernel_taps = KernelTaps(kernel, lambda: flows.guards, clock) if kernel is not None and flows is not None else None
        self._watches = Watches(firewall, clock, kernel=self._kernel_taps)

    def stop(self) -> None:
        """End the calls that would go on for ever."""
        self._watches.stop()

    async def close(self) -> None:
        """Give back what calls have taken, once all have ended."""
        if self._kernel_taps is not None:
            await self._kernel_taps.close()

    async def Decide(
        self, request: pb.DecideRequest, context: grpc.aio.ServicerContext[pb.DecideRequest, pb.DecideResponse]
    ) -> pb.DecideResponse:
        """Judge and track."""
        verdict = self._firewall.decide(await _packet(request.packet, context), self._clock())
        return pb.DecideResponse(
            action=types.Action.ValueType(verdict.action),
            reason=types.Reason.ValueType(verdict.reason),
            rule_id=verdict.rule_id,
            opened=verdict.opened,
        )

    async def DecideStream(
        self,
        request_iterator: AsyncIterator[pb.DecideStreamRequest],
        context: grpc.aio.ServicerContext[pb.DecideStreamRequest, pb.DecideStreamResponse],
    ) -> AsyncIterator[pb.DecideStreamResponse]:
        """Judge and track packed packets in batches."""
        stream = DecideStream(self._firewall, self._clock)
        async for request in request_iterator:
            try:
                response = stream.answer(request)
            except PacketError as error:
                await refuse(context, error)
            yield response

    async def Explain(
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext[pb.ExplainRequest, pb.ExplainResponse]
    ) -> pb.ExplainResponse:
        """Judge and say why: as the kernel does with its connections, if it enforces."""
        packet = await _packet(request.packet, context)
        if self._kernel is None or self._kernel_flows is None:
            return explanation_message(self._firewall.explain(packet, self._clock()), self._firewall.ruleset)
        try:
            explanation = explain_in_kernel(packet, self._kernel.ruleset, self._kernel_flows, self._clock())
        except EnforcementError as error:
            await refuse(context, error)
        return explanation_message(explanation, self._kernel.ruleset)

    async def GetStats(
        self, request: pb.GetStatsRequest, context: grpc.aio.ServicerContext[pb.GetStatsRequest, pb.GetStatsResponse]
    ) -> pb.GetStatsResponse:
        """Answer the figures of this moment: what the kernel has denied counts in, and flows are its, if it enforces."""
        try:
            counts = await self._kernel.counts() if self._kernel is not None else KernelCounts()
            flows = await self._kernel_flows.count() if self._kernel_flows is not None else None
        except EnforcementError as error:
            await refuse(context, error)
        now_ns = self._clock()
        stats = await stats_of(self._firewall, now_ns)
        verdicts = Counter(stats.verdicts) + Counter(counts.denied)
        response = pb.GetStatsResponse(
            agent_id=self._agent_id,
            applied_revision=self._replica.revision,
            connected=self._subscription.connected,
            servers=stats.servers,
            groups=stats.groups,
            sets=stats.sets,
            flows=stats.flows if flows is None else sum(flows.by_state.values()),
            flows_max=stats.flows_max if flows is None else flows.flows_max,
            flows_by_state=stats.flows_by_state if flows is None else flows.by_state,
            verdicts={f"REASON_{reason.name}": count for reason, count in verdicts.items()},
            rules=_rule_counters(self._firewall.rule_counts(), counts.rules),
            evicted=stats.evicted,
            from_cache=self._replica.from_cache,
        )
        if self._replica.held_back is not None:
            response.held_back.CopyFrom(held_back_message(self._replica.held_back))
        heard_ns = self._subscription.last_heard_ns
        if heard_ns is not None:
            response.staleness.FromNanoseconds(max(0, now_ns - heard_ns))
        return response

    async def ListFlows(
        self, request: pb.ListFlowsRequest, context: grpc.aio.ServicerContext[pb.ListFlowsRequest, pb.ListFlowsResponse]
    ) -> AsyncIterator[pb.ListFlowsResponse]:
        """Tell the flows of this moment: the kernel's, if it enforces."""
        flows = self._kernel_flows
        source = flows.live if flows is not None else partial(tracked_by, self._firewall, self._clock)
        async for response in list_flows(source, self._clock, request, context):
            yield response

    async def WatchVerdicts(
        self,
        request: pb.WatchVerdictsRequest,
        context: grpc.aio.ServicerContext[pb.WatchVerdictsRequest, pb.WatchVerdictsResponse],
    ) -> AsyncIterator[pb.WatchVerdictsResponse]:
        """Tell verdicts as they are given."""
        async for response in self._watches.watch(request, context):
            yield response


def _rule_counters(*counted: Mapping[str, RuleCount]) -> list[pb.RuleCounter]:
    packets: Counter[str] = Counter()
    octets: Counter[str] = Counter()
    for counts in counted:
        packets.update({rule_id: count.packets for rule_id, count in counts.items()})
        octets.update({rule_id: count.bytes for rule_id, count in counts.items()})
    return [pb.RuleCounter(rule_id=rule_id, packets=packets[rule_id], bytes=octets[rule_id]) for rule_id in sorted(packets)]


async def _packet(
    message: pb.Packet,
    context: grpc.aio.ServicerContext[pb.DecideRequest, pb.DecideResponse]
    | grpc.aio.ServicerContext[pb.ExplainRequest, pb.ExplainResponse],
) -> Packet:
    """Return the packet, or end the call with INVALID_ARGUMENT that names the field."""
    try:
        return packet_of(message)
    except PacketError as error:
        await refuse(context, error)
