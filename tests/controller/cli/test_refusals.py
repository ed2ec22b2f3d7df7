"""How refused calls read, and which are made again: against a real gRPC server that refuses on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from secgroups.cli.client import RETRY_PAUSES_S, Client
from secgroups.cli.errors import CallError, UnreachableError
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1.group_service_pb2_grpc import GroupServiceServicer, add_GroupServiceServicer_to_server


@dataclass
class Refusing(GroupServiceServicer):
    """Answers GetGroup and CreateGroup as ``plan`` says, one step a call; then with success."""

    plan: list[Callable[[grpc.ServicerContext], None]] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def GetGroup(self, request: groups.GetGroupRequest, context: grpc.ServicerContext) -> groups.GetGroupResponse:  # noqa: N802
        self.requests.append(request)
        if self.plan:
            self.plan.pop(0)(context)
        return groups.GetGroupResponse(revision=7)

    def CreateGroup(self, request: groups.CreateGroupRequest, context: grpc.ServicerContext) -> groups.CreateGroupResponse:  # noqa: N802
        self.requests.append(request)
        if self.plan:
            self.plan.pop(0)(context)
        return groups.CreateGroupResponse(revision=8)


@dataclass
class World:
    """A client, the server that it talks to, and the pauses that it made."""

    client: Client
    service: Refusing
    pauses_s: list[float]

    def get(self, **options: Any) -> groups.GetGroupResponse:
        return self.client.call(self.client.groups.GetGroup, groups.GetGroupRequest(id="g"), **options)


@pytest.fixture
def world() -> Iterator[World]:
    server = grpc.server(ThreadPoolExecutor(2))
    service = Refusing()
    add_GroupServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pauses_s: list[float] = []
    with Client(f"127.0.0.1:{port}", "p", 5.0, pause=pauses_s.append) as client:
        yield World(client, service, pauses_s)
    server.stop(None).wait()


def plain(code: grpc.StatusCode, message: str) -> Callable[[grpc.ServicerContext], None]:
    return lambda context: context.abort(code, message)


def rich(code: int, message: str, *details: Any) -> Callable[[grpc.ServicerContext], None]:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return lambda context: context.abort_with_status(rpc_status.to_status(status))


BAD_REQUEST = error_details_pb2.BadRequest(
    field_violations=[
        error_details_pb2.BadRequest.FieldViolation(field="rules[2].ports", description="first 90 is above last 80"),
        error_details_pb2.BadRequest.FieldViolation(field="rules[3].cidr", description="no CIDR"),
    ]
)
PRECONDITION = error_details_pb2.PreconditionFailure(
    violations=[
        error_details_pb2.PreconditionFailure.Violation(type="IN_USE", subject="server/w1", description="is attached"),
    ]
)
QUOTA = error_details_pb2.QuotaFailure(
    violations=[error_details_pb2.QuotaFailure.Violation(subject="group/web", description="200 rules at most")]
)
RESOURCE = error_details_pb2.ResourceInfo(resource_type="rule", resource_name="r1", description="the first of them")
INFO = error_details_pb2.ErrorInfo(reason="GROUP_IN_USE", domain="secgroups", metadata={"limit": "200"})
UNKNOWN_KIND = error_details_pb2.RetryInfo()


@pytest.mark.parametrize(
    ("code", "message", "details", "refuse"),
    [
        ("NOT_FOUND", "no group g (NOT_FOUND)", (), plain(grpc.StatusCode.NOT_FOUND, "no group g")),
        (
            "INVALID_ARGUMENT",
            "2 mistakes (INVALID_ARGUMENT)",
            ("rules[2].ports: first 90 is above last 80", "rules[3].cidr: no CIDR"),
            rich(code_pb2.INVALID_ARGUMENT, "2 mistakes", BAD_REQUEST),
        ),
        (
            "FAILED_PRECONDITION",
            "in use (FAILED_PRECONDITION, GROUP_IN_USE)",
            ("limit: 200", "server/w1: is attached"),
            rich(code_pb2.FAILED_PRECONDITION, "in use", INFO, PRECONDITION),
        ),
        (
            "RESOURCE_EXHAUSTED",
            "full (RESOURCE_EXHAUSTED)",
            ("group/web: 200 rules at most",),
            rich(code_pb2.RESOURCE_EXHAUSTED, "full", QUOTA),
        ),
        (
            "ALREADY_EXISTS",
            "twice (ALREADY_EXISTS)",
            ("rule r1: the first of them",),
            rich(code_pb2.ALREADY_EXISTS, "twice", RESOURCE),
        ),
        ("ABORTED", "stale (ABORTED)", (), rich(code_pb2.ABORTED, "stale", UNKNOWN_KIND)),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",
)
def test_a_refusal_reads_with_its_code_and_everything_that_its_details_name(
    world: World, code: str, message: str, details: tuple[str, ...], refuse: Callable[[grpc.ServicerContext], None]
) -> None:
    world.service.plan = [refuse]
    with pytest.raises(CallError) as refused:
        world.get()
    assert (refused.value.code, refused.value.message, refused.value.details) == (code, message, details)
    assert len(world.service.requests) == 1


def test_details_that_contradict_the_status_are_left_out(world: World) -> None:
    status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="another message").SerializeToString()

    def refuse(context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(grpc.StatusCode.ABORTED, "stale")

    world.service.plan = [refuse]
    with pytest.raises(CallError, match=r"^stale \(ABORTED\)$"):
        world.get()


def test_an_unavailable_call_is_made_again_with_the_same_request_until_it_succeeds(world: World) -> None:
    world.service.plan = [plain(grpc.StatusCode.UNAVAILABLE, "busy")] * 2
    request = groups.CreateGroupRequest(name="web", request_id="same")
    assert world.client.call(world.client.groups.CreateGroup, request).revision == 8
    assert [sent.request_id for sent in world.service.requests] == ["same"] * 3
    assert world.pauses_s == list(RETRY_PAUSES_S[:2])


def test_the_repetition_has_an_end(world: World) -> None:
    world.service.plan = [rich(code_pb2.UNAVAILABLE, "the store can't be written", INFO)] * 10
    with pytest.raises(UnreachableError, match="the store can't be written"):
        world.get()
    assert len(world.service.requests) == 1 + len(RETRY_PAUSES_S)


def test_a_call_that_must_not_be_repeated_is_made_once(world: World) -> None:
    world.service.plan = [plain(grpc.StatusCode.UNAVAILABLE, "busy")]
    with pytest.raises(UnreachableError):
        world.client.call_once(world.client.groups.GetGroup, groups.GetGroupRequest())
    assert len(world.service.requests) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_other_refusals_are_not_repeated(world: World, code: grpc.StatusCode) -> None:
    world.service.plan = [plain(code, "no")]
    with pytest.raises(CallError):
        world.get()
    assert world.pauses_s == []


def test_an_answer_that_does_not_come_is_an_error_that_says_how_long_was_waited(world: World) -> None:
    def wait_until_given_up(context: grpc.ServicerContext) -> None:
        ended = threading.Event()
        context.add_callback(ended.set)
        assert ended.wait(5)

    world.service.plan = [wait_until_given_up]
    with pytest.raises(CallError, match=r"did not answer within 0\.2 s"):
        world.get(timeout_s=0.2)


def test_nobody_at_the_address_is_said_with_the_address_and_the_cause() -> None:
    with Client("unix:/nonexistent/socket", "p", 1.0, pause=lambda _: None) as client, pytest.raises(UnreachableError) as refused:
        client.call(client.groups.GetGroup, groups.GetGroupRequest())
    assert refused.value.message.startswith("controller unix:/nonexistent/socket can't be reached: ")


def test_somebody_at_the_address_who_is_busy_is_waited_for_as_long_as_for_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        with Client(address, "p", 0.5, pause=lambda _: None) as client, pytest.raises(CallError) as refused:
            client.call(client.groups.GetGroup, groups.GetGroupRequest())
    assert refused.value.message == f"controller {address} did not answer within 0.5 s"


def test_a_call_that_the_server_does_not_know_is_said_so(world: World) -> None:
    with pytest.raises(CallError, match="does not know this call"):
        world.client.call(world.client.groups.DeleteGroup, groups.DeleteGroupRequest())
