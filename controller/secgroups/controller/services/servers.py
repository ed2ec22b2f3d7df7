"""ServerService."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from secgroups.controller import operations
from secgroups.controller.convert import (
    Checks,
    addresses_of,
    group_ids_of,
    mask_of,
    others_planned_of,
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
from secgroups.controller.model import Server, check_name, parse_address
from secgroups.controller.services.mutation import Context, mutate
from secgroups.v1 import server_service_pb2 as pb
from secgroups.v1.server_service_pb2_grpc import ServerServiceServicer


class ServerService(ServerServiceServicer):
    """Servers over gRPC; reads are answered from memory."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core = core
        self._limits = limits

    async def CreateServer(self, request: pb.CreateServerRequest, context: Context) -> pb.CreateServerResponse:
        checks = Checks()
        limits = self._core.state.limits_of(request.project, self._limits)
        operation = partial(
            operations.create_server,
            project=checks.take(project_of, request),
            server_id=checks.take(check_name, request.id, "id"),
            name=checks.take(_name_or_none, request.name, "name"),
            addresses=checks.take(addresses_of, request.addresses, limits.addresses_per_server),
            agent_id=checks.take(_name_or_none, request.agent_id, "agent_id"),
            group_ids=checks.take(group_ids_of, request.group_ids, limits.groups_per_server),
            others_planned=checks.take(others_planned_of, request.others_planned, request.validate_only),
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.CreateServerResponse,
            lambda server, revision: pb.CreateServerResponse(server=server_message(server), revision=revision),
        )

    async def GetServer(self, request: pb.GetServerRequest, context: Context) -> pb.GetServerResponse:
        checks = Checks()
        project, server_id = checks.take(project_of, request), checks.take(required, request.id, "id")
        checks.done()
        server = self._core.state.find_server(project, server_id)
        if server is None:
            raise NotFoundError("server", request.id)
        return pb.GetServerResponse(server=server_message(server), revision=self._core.state.revision)

    async def ListServers(self, request: pb.ListServersRequest, context: Context) -> pb.ListServersResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        query = ("servers", request.project, request.name, request.address, request.agent_id, request.group_id)
        start = checks.take(page_start, query, request.page_token)
        checks.done()
        size = page_size_of(request.page_size)
        page = list(islice((server for server in self._candidates(request, project, start) if _fits(server, request)), size + 1))
        more = page_token(query, page[size - 1].id) if len(page) > size else ""
        return pb.ListServersResponse(
            servers=[server_message(server) for server in page[:size]],
            next_page_token=more,
            revision=self._core.state.revision,
        )

    def _candidates(self, request: pb.ListServersRequest, project: str, start: str) -> Iterator[Server]:
        """Yield the servers that the narrowest index gives, in order."""
        state = self._core.state
        if request.address:
            found = state.server_of_address(project, parse_address(request.address, "address"))
            return iter([found] if found and found.id > start else [])
        if request.group_id:
            if state.find_group(project, request.group_id) is None:
                raise NotFoundError("group", request.group_id)
            return (server for server in state.servers_of_group(request.group_id) if server.id > start)
        if request.agent_id:
            guarded = state.servers_of_agent(request.agent_id)
            return (server for server in guarded if server.project == project and server.id > start)
        return state.servers(project, start)

    async def UpdateServer(self, request: pb.UpdateServerRequest, context: Context) -> pb.UpdateServerResponse:
        checks = Checks()
        paths = checks.take(mask_of, request.update_mask, ("name", "addresses", "agent_id", "group_ids")) or ()
        limits = self._core.state.limits_of(request.project, self._limits)
        addresses_max, groups_max = limits.addresses_per_server, limits.groups_per_server
        operation = partial(
            operations.update_server,
            project=checks.take(project_of, request),
            server_id=checks.take(required, request.id, "id"),
            name=checks.take(_name_or_none, request.name, "name") if "name" in paths else None,
            addresses=checks.take(addresses_of, request.addresses, addresses_max) if "addresses" in paths else None,
            agent_id=checks.take(_name_or_none, request.agent_id, "agent_id") if "agent_id" in paths else None,
            group_ids=checks.take(group_ids_of, request.group_ids, groups_max) if "group_ids" in paths else None,
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.UpdateServerResponse,
            lambda server, revision: pb.UpdateServerResponse(server=server_message(server), revision=revision),
        )

    async def DeleteServer(self, request: pb.DeleteServerRequest, context: Context) -> pb.DeleteServerResponse:
        checks = Checks()
        operation = partial(
            operations.delete_server,
            project=checks.take(project_of, request),
            server_id=checks.take(required, request.id, "id"),
            etag=request.etag,
        )
        return await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.DeleteServerResponse,
            lambda server, revision: pb.DeleteServerResponse(server=server_message(server), revision=revision),
        )


def _name_or_none(value: str, field: str) -> str:
    """Return a name that may be empty."""
    return check_name(value, field) if value else value


def _fits(server: Server, request: pb.ListServersRequest) -> bool:
    return (
        (not request.name or server.name == request.name)
        and (not request.agent_id or server.agent_id == request.agent_id)
        and (not request.group_id or request.group_id in server.group_ids)
    )
