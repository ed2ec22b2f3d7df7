"""A client of a running controller that sees what any client sees: messages, status codes and error details."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

from secgroups.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    group_service_pb2,
    limit_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
)
from secgroups.v1 import types_pb2 as types
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.limit_service_pb2_grpc import LimitServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

CALL_TIMEOUT_S = 20.0

_SERVICES = (
    (agent_service_pb2, AgentServiceStub),
    (attachment_service_pb2, AttachmentServiceStub),
    (group_service_pb2, GroupServiceStub),
    (limit_service_pb2, LimitServiceStub),
    (rule_service_pb2, RuleServiceStub),
    (ruleset_service_pb2, RulesetServiceStub),
    (server_service_pb2, ServerServiceStub),
)

INGRESS = types.DIRECTION_INGRESS
EGRESS = types.DIRECTION_EGRESS
TCP = types.PROTOCOL_TCP
UDP = types.PROTOCOL_UDP
ICMP = types.PROTOCOL_ICMP
ANY = types.PROTOCOL_ANY
NUMBER = types.PROTOCOL_NUMBER
ANYWHERE: dict[str, Any] = {"anywhere": {}}


def rule(**changed: Any) -> dict[str, Any]:
    """Return ingress TCP 22 from 203.0.113.0/24 but for what is ``changed``; None leaves a field out."""
    spec = {"direction": INGRESS, "protocol": TCP, "ports": {"first": 22, "last": 22}, "cidr": "203.0.113.0/24", **changed}
    return {name: value for name, value in spec.items() if value is not None}


def on_port(port: int, **changed: Any) -> dict[str, Any]:
    """Return ingress TCP to one port."""
    return rule(ports={"first": port, "last": port}, **changed)


def masked(*paths: str) -> dict[str, Any]:
    """Return a field mask."""
    return {"paths": list(paths)}


class RefusedError(Exception):
    """A call that was refused: its code, message and details."""

    def __init__(self, error: grpc.RpcError) -> None:
        assert isinstance(error, grpc.Call)
        self.code = error.code().name
        self.message = error.details() or ""
        super().__init__(f"{self.code}: {self.message}")
        status = rpc_status.from_call(error)
        self.details: list[Message] = []
        for packed in status.details if status is not None else ():
            kind = getattr(details, packed.TypeName().rpartition(".")[2])
            self.details.append(message := kind())
            assert packed.Unpack(message)

    def detail(self, kind: type[Any]) -> Any:
        """Return the one detail of a kind."""
        (found,) = (message for message in self.details if isinstance(message, kind))
        return found

    @property
    def reason(self) -> str:
        return str(self.detail(details.ErrorInfo).reason)

    @property
    def fields(self) -> list[str]:
        """The fields of a request that are wrong, in order."""
        return [violation.field for violation in self.detail(details.BadRequest).field_violations]


@dataclass(frozen=True)
class Target:
    """Where a controller answers."""

    address: str
    admin_address: str


class Api:
    """Calls on one project. ``call`` fills in the project; ``names`` are ids that requests may use as ``$name``."""

    def __init__(self, target: Target, project: str) -> None:
        self.target = target
        self.project = project
        self.names: dict[str, str] = {}
        self.channel = grpc.insecure_channel(target.address)
        self._methods: dict[str, tuple[Any, Any]] = {}
        for module, stub_type in _SERVICES:
            stub = stub_type(self.channel)
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    self._methods[method.name] = (getattr(stub, method.name), getattr(module, method.input_type.name))

    def close(self) -> None:
        self.channel.close()

    def request(self, method: str, **values: Any) -> Any:
        """Return the request of a call."""
        request_type = self._methods[method][1]
        if "project" in request_type.DESCRIPTOR.fields_by_name:
            values.setdefault("project", self.project)
        return request_type(**{name: self._resolved(value) for name, value in values.items()})

    def call(self, method: str, **values: Any) -> Any:
        """Return the answer. RefusedError if there is none."""
        try:
            return self._methods[method][0](self.request(method, **values), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise RefusedError(error) from None

    def stream(self, method: str, **values: Any) -> Iterator[Any]:
        """Yield the answers of a streaming call. RefusedError if it ends with one."""
        answers = self._methods[method][0](self.request(method, **values), timeout=CALL_TIMEOUT_S)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise RefusedError(error) from None
        finally:
            answers.cancel()

    def refused(self, method: str, **values: Any) -> RefusedError:
        """Return how a call is refused; what it left behind must be nothing."""
        before = self.revision()
        try:
            answer = self.call(method, **values)
        except RefusedError as error:
            assert self.revision() == before
            return error
        raise AssertionError(f"{method} was not refused: {answer}")

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            return self.names[value[1:]]
        if isinstance(value, dict):
            return {name: self._resolved(item) for name, item in value.items()}
        return [self._resolved(item) for item in value] if isinstance(value, list) else value

    # Short ways to what most tests begin with.

    def revision(self) -> int:
        """Return the controller's revision."""
        return int(self.call("ListAgents").revision)

    def group(self, name: str, *rules: dict[str, Any]) -> str:
        """Make a group that has, besides the rules it is born with, ``rules``; return its id, known as ``$name``."""
        self.names[name] = str(self.call("CreateGroup", name=name).group.id)
        if rules:
            self.call("BatchCreateRules", group_id=self.names[name], rules=list(rules))
        return self.names[name]

    def rule(self, group_id: str, /, **changed: Any) -> Any:
        """Add a rule and return it."""
        return self.call("CreateRule", group_id=group_id, rule=rule(**changed)).rule

    def server(self, server_id: str, *addresses: str, groups: tuple[str, ...] = (), agent_id: str = "") -> Any:
        """Make a server and return it."""
        values = {"id": server_id, "addresses": list(addresses), "group_ids": list(groups), "agent_id": agent_id}
        return self.call("CreateServer", **values).server

    def default_id(self) -> str:
        """Return the id of the default group."""
        return str(self.call("ListGroups", name="default").groups[0].id)

    def rule_ids(self, group_id: str) -> list[str]:
        """Return the ids of a group's rules."""
        return [rule.id for rule in self.call("ListRules", group_id=group_id, page_size=1000).rules]
