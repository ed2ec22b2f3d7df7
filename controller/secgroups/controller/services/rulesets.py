"""RulesetService: what is in force and why."""

from __future__ import annotations

import asyncio

from secgroups.controller.convert import Checks, given, project_of, protocol_of, required, rule_message, server_message
from secgroups.controller.core import Core
from secgroups.controller.errors import InvalidError, StoreUnavailableError
from secgroups.controller.model import ICMP, ICMPV6, parse_address
from secgroups.controller.rulesets import EffectiveRuleset, End, FlowJudgement, FlowQuestion, effective_ruleset, explain_flow
from secgroups.controller.services.mutation import Context
from secgroups.controller.services.waiting import wait_for_revision
from secgroups.controller.watchers import Watchers
from secgroups.v1 import ruleset_service_pb2 as pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceServicer

# A watcher is told no more often than this; what changes in between is told together.
WATCH_PAUSE_S = 0.02


class RulesetService(RulesetServiceServicer):
    """Effective rulesets and questions about them, from memory."""

    def __init__(self, core: Core, watchers: Watchers) -> None:
        """``watchers`` are told of every change of ``core`` by whoever made them."""
        self._core = core
        self._watchers = watchers
        self._waits: set[asyncio.Task[pb.WaitForRevisionResponse]] = set()

    def close(self) -> None:
        """End watches and waits, and with a reason: agents are told to go as well, so nothing comes into force any more."""
        self._watchers.close()
        for wait in self._waits:
            wait.cancel()

    async def GetEffectiveRuleset(self, request: pb.GetEffectiveRulesetRequest, context: Context) -> pb.GetEffectiveRulesetResponse:
        project, server_id = _server_named(request)
        return pb.GetEffectiveRulesetResponse(ruleset=_ruleset_message(effective_ruleset(self._core.state, project, server_id)))

    async def WatchEffectiveRuleset(  # type: ignore[override]
        self, request: pb.WatchEffectiveRulesetRequest, context: Context
    ) -> None:
        """Write to ``context``, so that one who goes in the middle of a message is forgotten at once."""
        project, server_id = _server_named(request)
        news = asyncio.Event()
        watcher = self._watchers.add(news.set)
        shown = None
        try:
            while not self._watchers.closed:
                news.clear()
                ruleset = effective_ruleset(self._core.state, project, server_id)
                self._watchers.show(watcher, ruleset)
                content = (ruleset.server, ruleset.rules, ruleset.remote_groups)
                if content != shown:
                    shown = content
                    await context.write(pb.WatchEffectiveRulesetResponse(ruleset=_ruleset_message(ruleset)))
                    await asyncio.sleep(WATCH_PAUSE_S)
                await news.wait()
        finally:
            self._watchers.remove(watcher)
        raise StoreUnavailableError("the controller is stopping; watch again", retry_after_s=self._core.returns.next_s())

    async def ExplainFlow(self, request: pb.ExplainFlowRequest, context: Context) -> pb.ExplainFlowResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        source, destination = (
            checks.take(_end_of, end, field) for end, field in ((request.source, "source"), (request.destination, "destination"))
        )
        protocol = checks.take(_protocol_of, request)
        checks.done()
        question = FlowQuestion(
            project=project,
            source=source,
            destination=destination,
            protocol=protocol,
            port=request.port,
            icmp_type=given(request, "icmp_type"),
            icmp_code=given(request, "icmp_code"),
        )
        explained = explain_flow(self._core.state, question)
        return pb.ExplainFlowResponse(
            action=types.ACTION_ALLOW if explained.allowed else types.ACTION_DENY,
            judgements=[_judgement_message(judgement) for judgement in explained.judgements],
            revision=explained.revision,
        )

    async def WaitForRevision(self, request: pb.WaitForRevisionRequest, context: Context) -> pb.WaitForRevisionResponse:
        if self._watchers.closed:
            raise self._stopping()
        wait = asyncio.create_task(wait_for_revision(self._core, request))
        self._waits.add(wait)
        try:
            return await wait
        except asyncio.CancelledError:
            if self._watchers.closed:
                raise self._stopping() from None
            raise
        finally:
            self._waits.discard(wait)

    def _stopping(self) -> StoreUnavailableError:
        return StoreUnavailableError("the controller is stopping; wait again", retry_after_s=self._core.returns.next_s())


def _server_named(request: pb.GetEffectiveRulesetRequest | pb.WatchEffectiveRulesetRequest) -> tuple[str, str]:
    checks = Checks()
    project, server_id = checks.take(project_of, request), checks.take(required, request.server_id, "server_id")
    checks.done()
    return project, server_id


def _protocol_of(request: pb.ExplainFlowRequest) -> int:
    protocol = protocol_of(request.protocol, given(request, "protocol_number"))
    if protocol is None:
        raise InvalidError("protocol", "PROTOCOL_ANY is for rules; a flow has one protocol")
    return ICMP if protocol == ICMPV6 else protocol


def _end_of(endpoint: pb.Endpoint, field: str) -> End:
    text = endpoint.server_address
    match endpoint.WhichOneof("end"):
        case "server_id":
            address = parse_address(text, f"{field}.server_address") if text else None
            return End(server_id=required(endpoint.server_id, f"{field}.server_id"), address=address)
        case "address":
            if text:
                raise InvalidError(f"{field}.server_address", "goes with server_id; leave it out beside an address")
            return End(address=parse_address(endpoint.address, f"{field}.address"))
        case _:
            raise InvalidError(field, "must be given: one of server_id, address")


def _ruleset_message(ruleset: EffectiveRuleset) -> pb.EffectiveRuleset:
    return pb.EffectiveRuleset(
        server=server_message(ruleset.server),
        rules=[
            pb.EffectiveRule(
                rule=rule_message(found.rule),
                group_name=found.group.name,
                remote_group_name=found.remote_group.name if found.remote_group else "",
            )
            for found in ruleset.rules
        ],
        remote_groups=[
            pb.ResolvedGroup(
                group_id=resolved.group.id,
                name=resolved.group.name,
                addresses=[str(address) for address in resolved.addresses],
            )
            for resolved in ruleset.remote_groups
        ],
        revision=ruleset.revision,
    )


def _judgement_message(judgement: FlowJudgement) -> pb.Judgement:
    rule, group = judgement.rule, judgement.group
    return pb.Judgement(
        server_id=judgement.server.id,
        direction=types.Direction.ValueType(judgement.direction),
        action=types.ACTION_ALLOW if judgement.allowed else types.ACTION_DENY,
        reason=types.Reason.ValueType(judgement.reason),
        rule_id=rule.id if rule else "",
        group_id=group.id if group else "",
        group_name=group.name if group else "",
        nearest=[
            pb.NearMiss(rule_id=miss.rule.id, group_id=miss.rule.group_id, failed=miss.failed, text=miss.text)
            for miss in judgement.nearest
        ],
        text=judgement.text,
    )
