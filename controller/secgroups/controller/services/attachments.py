"""AttachmentService."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice

from secgroups.controller import operations
from secgroups.controller.convert import (
    Checks,
    group_ids_of,
    page_size_of,
    page_start,
    page_token,
    project_of,
    required,
    server_message,
)
from secgroups.controller.core import Core
from secgroups.controller.errors import NotFoundError
from secgroups.controller.limits import Limits
from secgroups.controller.services.mutation import Context, mutate
from secgroups.v1 import attachment_service_pb2 as pb
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceServicer


class AttachmentService(AttachmentServiceServicer):
    """Which server has which groups, over gRPC."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core = core
        self._limits = limits

    async def AttachGroup(self, request: pb.AttachGroupRequest, context: Context) -> pb.AttachGroupResponse:
        checks = Checks()
        operation = partial(
            operations.attach_group,
            project=checks.take(project_of, request),
            server_id=checks.take(required, request.server_id, "server_id"),
            group_id=checks.take(required, request.group_id, "group_id"),
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.AttachGroupResponse,
            lambda server, revision: pb.AttachGroupResponse(server=server_message(server), revision=revision),
        )

    async def DetachGroup(self, request: pb.DetachGroupRequest, context: Context) -> pb.DetachGroupResponse:
        checks = Checks()
        operation = partial(
            operations.detach_group,
            project=checks.take(project_of, request),
            server_id=checks.take(required, request.server_id, "server_id"),
            group_id=checks.take(required, request.group_id, "group_id"),
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.DetachGroupResponse,
            lambda server, revision: pb.DetachGroupResponse(server=server_message(server), revision=revision),
        )

    async def SetServerGroups(self, request: pb.SetServerGroupsRequest, context: Context) -> pb.SetServerGroupsResponse:
        checks = Checks()
        groups_max = self._core.state.limits_of(request.project, self._limits).groups_per_server
        operation = partial(
            operations.set_server_groups,
            project=checks.take(project_of, request),
            server_id=checks.take(required, request.server_id, "server_id"),
            group_ids=checks.take(group_ids_of, request.group_ids, groups_max),
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.SetServerGroupsResponse,
            lambda server, revision: pb.SetServerGroupsResponse(server=server_message(server), revision=revision),
        )

    async def ListAttachments(self, request: pb.ListAttachmentsRequest, context: Context) -> pb.ListAttachmentsResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        query = ("attachments", request.project, request.server_id, request.group_id)
        start = checks.take(page_start, query, request.page_token)
        checks.done()
        # A slash is in neither id, so it separates them.
        server_id, _, group_id = start.partition("/")
        pairs = self._pairs(request, project, (server_id, group_id))
        size = page_size_of(request.page_size)
        page = list(islice(pairs, size + 1))
        more = page_token(query, "/".join(page[size - 1])) if len(page) > size else ""
        return pb.ListAttachmentsResponse(
            attachments=[pb.Attachment(project=project, server_id=server, group_id=group) for server, group in page[:size]],
            next_page_token=more,
            revision=self._core.state.revision,
        )

    def _pairs(self, request: pb.ListAttachmentsRequest, project: str, start: tuple[str, str]) -> Iterator[tuple[str, str]]:
        state = self._core.state
        if request.group_id and state.find_group(project, request.group_id) is None:
            raise NotFoundError("group", request.group_id)
        if request.server_id:
            server = state.find_server(project, request.server_id)
            if server is None:
                raise NotFoundError("server", request.server_id)
            servers = iter([server])
        elif request.group_id:
            servers = (server for server in state.servers_of_group(request.group_id) if server.id >= start[0])
        else:
            first = state.find_server(project, start[0])
            servers = chain([first] if first else [], state.servers(project, start[0]))
        for server in servers:
            for group_id in server.group_ids:
                if (server.id, group_id) > start and request.group_id in ("", group_id):
                    yield server.id, group_id
