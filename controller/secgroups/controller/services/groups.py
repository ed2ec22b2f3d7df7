"""GroupService."""

from __future__ import annotations

from functools import partial
from itertools import islice

from secgroups.controller import operations
from secgroups.controller.convert import (
    Checks,
    group_message,
    mask_of,
    others_planned_of,
    page_size_of,
    page_start,
    page_token,
    project_of,
    required,
)
from secgroups.controller.core import Core
from secgroups.controller.errors import NotFoundError
from secgroups.controller.model import DEFAULT_GROUP, Group, check_description, check_name
from secgroups.controller.services.mutation import Context, mutate
from secgroups.controller.store.interface import Transaction
from secgroups.v1 import group_service_pb2 as pb
from secgroups.v1 import types_pb2
from secgroups.v1.group_service_pb2_grpc import GroupServiceServicer

# The two egress rules that every group is born with.
_BORN_RULES = 2


class GroupService(GroupServiceServicer):
    """Groups over gRPC; reads are answered from memory."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _message(self, group: Group) -> types_pb2.Group:
        state = self._core.state
        return group_message(group, rule_count=state.rule_count(group.id), server_count=state.server_count(group.id))

    async def CreateGroup(self, request: pb.CreateGroupRequest, context: Context) -> pb.CreateGroupResponse:
        checks = Checks()
        operation = partial(
            operations.create_group,
            project=checks.take(project_of, request),
            name=checks.take(check_name, request.name, "name"),
            description=checks.take(check_description, request.description),
            others_planned=checks.take(others_planned_of, request.others_planned, request.validate_only),
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.CreateGroupResponse,
            lambda group, revision: pb.CreateGroupResponse(
                group=group_message(group, rule_count=_BORN_RULES, server_count=0), revision=revision
            ),
        )

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        checks = Checks()
        project, group_id = checks.take(project_of, request), checks.take(required, request.id, "id")
        checks.done()
        group = self._core.state.find_group(project, group_id)
        if group is None:
            raise NotFoundError("group", request.id)
        return pb.GetGroupResponse(group=self._message(group), revision=self._core.state.revision)

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        query = ("groups", request.project, request.name)
        start = checks.take(page_start, query, request.page_token)
        checks.done()
        state = self._core.state
        if state.group_by_name(project, DEFAULT_GROUP) is None:
            # To list the groups of a project is to use it.
            await self._core.change(partial(operations.ensure_default_group, project=project), actor=context.peer())
        if request.name:
            found = state.group_by_name(project, request.name)
            return pb.ListGroupsResponse(groups=[self._message(found)] if found else [], revision=state.revision)
        size = page_size_of(request.page_size)
        page = list(islice(state.groups(project, start), size + 1))
        more = page_token(query, page[size - 1].id) if len(page) > size else ""
        return pb.ListGroupsResponse(
            groups=[self._message(group) for group in page[:size]], next_page_token=more, revision=state.revision
        )

    async def UpdateGroup(self, request: pb.UpdateGroupRequest, context: Context) -> pb.UpdateGroupResponse:
        checks = Checks()
        paths = checks.take(mask_of, request.update_mask, ("name", "description")) or ()
        operation = partial(
            operations.update_group,
            project=checks.take(project_of, request),
            group_id=checks.take(required, request.id, "id"),
            name=checks.take(check_name, request.name, "name") if "name" in paths else None,
            description=checks.take(check_description, request.description) if "description" in paths else None,
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.UpdateGroupResponse,
            lambda group, revision: pb.UpdateGroupResponse(group=self._message(group), revision=revision),
        )

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> pb.DeleteGroupResponse:
        checks = Checks()
        group_id = checks.take(required, request.id, "id")
        delete = partial(operations.delete_group, project=checks.take(project_of, request), group_id=group_id, etag=request.etag)

        def operation(tx: Transaction) -> tuple[Group, int]:
            rule_count = tx.count_rules(group_id)
            return delete(tx), rule_count

        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.DeleteGroupResponse,
            # No server was attached, or it would not be gone.
            lambda deleted, revision: pb.DeleteGroupResponse(
                group=group_message(deleted[0], rule_count=deleted[1], server_count=0), revision=revision
            ),
        )
