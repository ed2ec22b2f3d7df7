"""RuleService."""

from __future__ import annotations

from functools import partial
from itertools import islice

from secgroups.controller import operations
from secgroups.controller.convert import (
    Checks,
    mask_of,
    one_spec_of,
    page_size_of,
    page_start,
    page_token,
    project_of,
    required,
    rule_message,
    specs_of,
)
from secgroups.controller.core import Core
from secgroups.controller.errors import NotFoundError
from secgroups.controller.model import check_description
from secgroups.controller.services.mutation import Context, mutate
from secgroups.controller.services.presets import PRESETS
from secgroups.v1 import rule_service_pb2 as pb
from secgroups.v1.rule_service_pb2_grpc import RuleServiceServicer


class RuleService(RuleServiceServicer):
    """Rules over gRPC; reads are answered from memory."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def CreateRule(self, request: pb.CreateRuleRequest, context: Context) -> pb.CreateRuleResponse:
        checks = Checks()
        operation = partial(
            operations.create_rules,
            project=checks.take(project_of, request),
            group_id=checks.take(required, request.group_id, "group_id"),
            specs=[checks.take(one_spec_of, request.rule)],
            bulk=False,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.CreateRuleResponse,
            lambda rules, revision: pb.CreateRuleResponse(rule=rule_message(rules[0]), revision=revision),
        )

    async def BatchCreateRules(self, request: pb.BatchCreateRulesRequest, context: Context) -> pb.BatchCreateRulesResponse:
        checks = Checks()
        operation = partial(
            operations.create_rules,
            project=checks.take(project_of, request),
            group_id=checks.take(required, request.group_id, "group_id"),
            specs=checks.take(specs_of, request.rules, fewest=1),
            bulk=True,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.BatchCreateRulesResponse,
            lambda rules, revision: pb.BatchCreateRulesResponse(rules=[rule_message(rule) for rule in rules], revision=revision),
        )

    async def GetRule(self, request: pb.GetRuleRequest, context: Context) -> pb.GetRuleResponse:
        checks = Checks()
        project, rule_id = checks.take(project_of, request), checks.take(required, request.id, "id")
        checks.done()
        rule = self._core.state.find_rule(project, rule_id)
        if rule is None:
            raise NotFoundError("rule", request.id)
        return pb.GetRuleResponse(rule=rule_message(rule), revision=self._core.state.revision)

    async def ListRules(self, request: pb.ListRulesRequest, context: Context) -> pb.ListRulesResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        query = ("rules", request.project, request.group_id, request.remote_group_id)
        start = checks.take(page_start, query, request.page_token)
        checks.done()
        state = self._core.state
        for group_id in filter(None, (request.group_id, request.remote_group_id)):
            if state.find_group(project, group_id) is None:
                raise NotFoundError("group", group_id)
        if request.group_id:
            rules = (rule for rule in state.rules_of_group(request.group_id) if rule.id > start)
        elif request.remote_group_id:
            rules = (
                rule for rule in sorted(state.rules_naming(request.remote_group_id), key=lambda rule: rule.id) if rule.id > start
            )
        else:
            rules = (rule for rule in state.rules(project, start))
        wanted = request.remote_group_id
        size = page_size_of(request.page_size)
        page = list(islice((rule for rule in rules if not wanted or rule.spec.remote_group_id == wanted), size + 1))
        more = page_token(query, page[size - 1].id) if len(page) > size else ""
        return pb.ListRulesResponse(
            rules=[rule_message(rule) for rule in page[:size]], next_page_token=more, revision=state.revision
        )

    async def UpdateRule(self, request: pb.UpdateRuleRequest, context: Context) -> pb.UpdateRuleResponse:
        checks = Checks()
        checks.take(mask_of, request.update_mask, ("description",))
        operation = partial(
            operations.update_rule,
            project=checks.take(project_of, request),
            rule_id=checks.take(required, request.id, "id"),
            description=checks.take(check_description, request.description),
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.UpdateRuleResponse,
            lambda rule, revision: pb.UpdateRuleResponse(rule=rule_message(rule), revision=revision),
        )

    async def DeleteRule(self, request: pb.DeleteRuleRequest, context: Context) -> pb.DeleteRuleResponse:
        checks = Checks()
        operation = partial(
            operations.delete_rule,
            project=checks.take(project_of, request),
            rule_id=checks.take(required, request.id, "id"),
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.DeleteRuleResponse,
            lambda rule, revision: pb.DeleteRuleResponse(rule=rule_message(rule), revision=revision),
        )

    async def ReplaceRules(self, request: pb.ReplaceRulesRequest, context: Context) -> pb.ReplaceRulesResponse:
        checks = Checks()
        operation = partial(
            operations.replace_rules,
            project=checks.take(project_of, request),
            group_id=checks.take(required, request.group_id, "group_id"),
            specs=checks.take(specs_of, request.rules, fewest=0),
            etag=request.etag,
        )
        return await mutate(self._core, request, context, checks, operation, pb.ReplaceRulesResponse, _replaced)

    async def ListPresets(self, request: pb.ListPresetsRequest, context: Context) -> pb.ListPresetsResponse:
        return pb.ListPresetsResponse(presets=PRESETS)


def _replaced(replaced: operations.Replaced, revision: int) -> pb.ReplaceRulesResponse:
    return pb.ReplaceRulesResponse(
        rules=[rule_message(rule) for rule in replaced.rules],
        added_ids=replaced.added_ids,
        kept_ids=replaced.kept_ids,
        removed=[rule_message(rule) for rule in replaced.removed],
        revision=revision,
    )
