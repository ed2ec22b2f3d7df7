"""The calls themselves: one channel, its stubs, bounded repetition, and errors as people read them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

import grpc

from secgroups.cli.errors import CliError, UnreachableError, shown
from secgroups.cli.security import AgentSecurity, Security
from secgroups.cli.statuses import refusal
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.audit_service_pb2_grpc import AuditServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.limit_service_pb2_grpc import LimitServiceStub
from secgroups.v1.operator_service_pb2_grpc import OperatorServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

# Between attempts of a call that may be repeated; 1.3 s in all, which is more than a controller needs to come back.
RETRY_PAUSES_S = (0.1, 0.3, 0.9)
PAGE_SIZE = 1000
# An effective ruleset with large remote groups is longer than gRPC's 4 MiB.
MESSAGE_BYTES_MAX = 256 * 1024 * 1024

# What gRPC makes of anything else ranges from a name to look up to a line of its own on stderr.
ADDRESS = re.compile(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})|unix:.+", re.ASCII)
# gRPC takes a port beyond it modulo 65,536: another server would be called.
PORT_MAX = 65_535

Request = TypeVar("Request")
Response = TypeVar("Response")


class _Page(Protocol):
    next_page_token: str


class _Paged(Protocol):
    page_size: int
    page_token: str


PageRequest = TypeVar("PageRequest", bound=_Paged)
PageResponse = TypeVar("PageResponse", bound=_Page)


def check_address(address: str, who: str) -> None:
    """Return if ``address`` can be called. CliError if it is none; ``who`` would be there."""
    found = ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found["port"] or 1) <= PORT_MAX:
        raise CliError(f"{who} address {shown(address)} is none; it is HOST:PORT, [IPV6]:PORT or unix:PATH")


class Connection:
    """A channel to ``address`` (``HOST:PORT`` or ``unix:PATH``); ``who`` names the other side in messages.

    In plain text without ``security``. CliError if the address is none.
    """

    def __init__(
        self,
        address: str,
        who: str,
        timeout_s: float,
        *,
        security: Security | AgentSecurity | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        check_address(address, who)
        self.address = address
        self.timeout_s = timeout_s
        self._who = f"{who} {address}"
        self._pause = pause
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            # Else a second attempt within a second fails without having tried.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if security is None:
            self.channel = grpc.insecure_channel(address, options=options)
        else:
            if isinstance(security, AgentSecurity):
                options.append(("grpc.ssl_target_name_override", security.server_name))
            elif address.startswith("unix:"):
                options.append(("grpc.ssl_target_name_override", "localhost"))
            self.channel = grpc.secure_channel(address, security.credentials(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, *, timeout_s: float | None = None
    ) -> Response:
        """Call ``method``, again a few times while it is UNAVAILABLE. Only for calls that may be repeated. Raises CallError."""
        for pause_s in RETRY_PAUSES_S:
            try:
                return self.call_once(method, request, timeout_s=timeout_s)
            except UnreachableError:
                self._pause(pause_s)
        return self.call_once(method, request, timeout_s=timeout_s)

    def call_once(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, *, timeout_s: float | None = None
    ) -> Response:
        """Call ``method`` once: for changes that would answer otherwise the second time. Raises CallError."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise refusal(cast("grpc.Call", error), self._who, timeout_s) from None

    def stream(self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request) -> Iterator[Response]:
        """Yield the answers of ``method`` until it ends. No time-out, no repetition. Raises CallError."""
        answers = method(request)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise refusal(cast("grpc.Call", error), self._who, 0) from None
        finally:
            answers.cancel()


class Client(Connection):
    """The controller's services, for one project."""

    def __init__(
        self,
        address: str,
        project: str,
        timeout_s: float,
        *,
        security: Security | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(address, "controller", timeout_s, security=security, pause=pause)
        self.project = project
        self.groups = GroupServiceStub(self.channel)
        self.rules = RuleServiceStub(self.channel)
        self.servers = ServerServiceStub(self.channel)
        self.attachments = AttachmentServiceStub(self.channel)
        self.rulesets = RulesetServiceStub(self.channel)
        self.agents = AgentServiceStub(self.channel)
        self.audit = AuditServiceStub(self.channel)
        self.limits = LimitServiceStub(self.channel)
        self.trust = TrustServiceStub(self.channel)
        self.operator = OperatorServiceStub(self.channel)

    def pages(
        self, method: grpc.UnaryUnaryMultiCallable[PageRequest, PageResponse], request: PageRequest
    ) -> Iterator[PageResponse]:
        """Yield every page of a list. Changes ``request``. Raises CallError."""
        request.page_size = PAGE_SIZE
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class AgentClient(Connection):
    """An agent's VerdictService."""

    def __init__(
        self,
        address: str,
        timeout_s: float,
        *,
        security: AgentSecurity | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(address, "agent", timeout_s, security=security, pause=pause)
        self.verdicts = VerdictServiceStub(self.channel)


def new_request_id() -> str:
    """Return an id that makes a create safe to repeat."""
    import uuid

    return str(uuid.uuid4())
