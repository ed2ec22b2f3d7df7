"""The controller as a process: store, core and gRPC servers, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import grpc
import structlog
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from secgroups.controller.clocks import SYSTEM_CLOCKS
from secgroups.controller.config import ControllerConfig
from secgroups.controller.connections import allow_connections, connection_options
from secgroups.controller.core import Core
from secgroups.controller.errors import ConfigError
from secgroups.controller.interceptors import ErrorsAndLog
from secgroups.controller.metrics import Counts, collect
from secgroups.controller.metrics_server import MetricsServer
from secgroups.controller.reloading import Reloading
from secgroups.controller.service_manager import READY, STOPPING, notify
from secgroups.controller.services.agents import Agents, add_agents_to_server
from secgroups.controller.services.attachments import AttachmentService
from secgroups.controller.services.audit import AuditService
from secgroups.controller.services.groups import GroupService
from secgroups.controller.services.limits import LimitService
from secgroups.controller.services.operator import OperatorService
from secgroups.controller.services.rules import RuleService
from secgroups.controller.services.rulesets import RulesetService
from secgroups.controller.services.servers import ServerService
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.stream_settings import StreamSettings
from secgroups.controller.trust.office import Trust
from secgroups.controller.watchers import Watchers
from secgroups.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    audit_service_pb2,
    group_service_pb2,
    limit_service_pb2,
    operator_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    trust_service_pb2,
)
from secgroups.v1.attachment_service_pb2_grpc import add_AttachmentServiceServicer_to_server
from secgroups.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from secgroups.v1.group_service_pb2_grpc import add_GroupServiceServicer_to_server
from secgroups.v1.limit_service_pb2_grpc import add_LimitServiceServicer_to_server
from secgroups.v1.operator_service_pb2_grpc import add_OperatorServiceServicer_to_server
from secgroups.v1.rule_service_pb2_grpc import add_RuleServiceServicer_to_server
from secgroups.v1.ruleset_service_pb2_grpc import add_RulesetServiceServicer_to_server
from secgroups.v1.server_service_pb2_grpc import add_ServerServiceServicer_to_server
from secgroups.v1.trust_service_pb2_grpc import add_TrustServiceServicer_to_server

log = structlog.get_logger(__name__)

DATABASE = "secgroups.db"
# sun_path of unix(7), less the zero at its end.
SOCKET_PATH_BYTES_MAX = 107
REQUEST_BYTES_MAX = 4 << 20
# The ruleset of a server with 16 groups of 20,000 members as remotes is below this.
RESPONSE_BYTES_MAX = 64 << 20
# grpcio refuses bursts of about 1,000 new streams unless it is told otherwise.
PENDING_REQUESTS_MAX = 20_000
PING_INTERVAL_MIN_MS = 5_000
# How long a thread holds the interpreter's lock at most while another waits for it. The store's writer needs it anew for each
# statement: with Python's 5 ms, a commit under load took most of a second.
SWITCH_INTERVAL_S = 0.0002
# Containers that come without going before garbage is looked for: streams of a thousand agents hold more than Python's 700.
GARBAGE_OBJECTS_MIN = 20_000
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

# The stable name of the service, with the messages of its predecessor: they are the same on the wire.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

_PROTOS = (
    agent_service_pb2,
    attachment_service_pb2,
    audit_service_pb2,
    group_service_pb2,
    limit_service_pb2,
    operator_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    trust_service_pb2,
)
# What an operator asks; nobody else has business there.
ADMIN_CALLS_MAX = 100
ADMIN_CONNECTIONS_MAX = 100
CHANNELZ_SERVICE = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
SERVICES = tuple(service.full_name for proto in _PROTOS for service in proto.DESCRIPTOR.services_by_name.values())

_OPTIONS = (
    # Two controllers on one port would share its calls at random.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", RESPONSE_BYTES_MAX),
    # Else every message that comes is answered by a ping that measures the line: a third of what a change for a thousand agents
    # costs. What comes is small, and gRPC makes room for a larger message while that comes.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.server.max_pending_requests", PENDING_REQUESTS_MAX),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_REQUESTS_MAX),
    # How often clients may ping; and how the server finds out that a silent one is gone.
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)


class ControllerServer:
    """The API on one address, channelz on another, health and reflection on both.

    ``address`` and ``admin_address`` are those that were chosen; ``connections_max`` is how many the system has room for.
    """

    def __init__(self, core: Core, config: ControllerConfig) -> None:
        """Bind. ConfigError, in one line, if that can't be done."""
        self._core = core
        self._watchers = Watchers(config.watchers_max)
        self._unlisten = core.listen(self._watchers.changed)
        self._health = health.aio.HealthServicer()
        self._counts = Counts()
        self._trust = None if config.plaintext else Trust(core, _data_dir(config), config, self._counts)
        doors, gates = ([self._trust.door], [self._trust.gate]) if self._trust else ([], [])
        interceptors = [*doors, ErrorsAndLog(self._counts), *gates]
        self.connections_max = allow_connections(config.connections_max)
        options = [*_OPTIONS, *connection_options(self.connections_max, config.idle_connection_s)]
        self._api = grpc.aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=config.calls_max)
        limits = config.limits()
        add_GroupServiceServicer_to_server(GroupService(core), self._api)
        add_RuleServiceServicer_to_server(RuleService(core), self._api)
        add_ServerServiceServicer_to_server(ServerService(core, limits), self._api)
        add_AttachmentServiceServicer_to_server(AttachmentService(core, limits), self._api)
        add_LimitServiceServicer_to_server(LimitService(core, limits), self._api)
        self._rulesets = RulesetService(core, self._watchers)
        add_RulesetServiceServicer_to_server(self._rulesets, self._api)
        self._audit = AuditService(core)
        add_AuditServiceServicer_to_server(self._audit, self._api)
        settings = StreamSettings(heartbeat_s=config.heartbeat_s)
        add_agents_to_server(Agents(core, settings, counts=self._counts), self._api)
        operator = OperatorService(_data_dir(config) / DATABASE, lambda: core.state.revision)
        add_OperatorServiceServicer_to_server(operator, self._api)
        if self._trust:
            add_TrustServiceServicer_to_server(self._trust.service, self._api)
        self._add_health_and_reflection(self._api, SERVICES)
        options = [*_OPTIONS, *connection_options(ADMIN_CONNECTIONS_MAX, config.idle_connection_s)]
        self._admin = grpc.aio.server(interceptors=[*doors, *gates], options=options, maximum_concurrent_rpcs=ADMIN_CALLS_MAX)
        channelz.add_channelz_servicer(self._admin)
        self._add_health_and_reflection(self._admin, (CHANNELZ_SERVICE,))
        # Each address has TLS of its own: gRPC does not take the same object twice.
        api_tls, admin_tls = (self._trust.for_clients() if self._trust else None for _ in range(2))
        self.address = _bind(self._api, "listen", config.listen, api_tls)
        self.admin_address = _bind(self._admin, "admin_listen", config.admin_listen, admin_tls)
        self.agent_address = self.address
        if self._trust:
            self.agent_address = _bind(self._api, "agent_listen", config.agent_listen, self._trust.for_agents())
        self._metrics = None
        if config.metrics_listen:
            read = partial(collect, core, self._counts, SYSTEM_CLOCKS)
            self._metrics = MetricsServer(config.metrics_listen, read, asyncio.get_running_loop())
        self.metrics_address = self._metrics.address if self._metrics else ""

    def _add_health_and_reflection(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
        reflection.enable_server_reflection(names, server)
        server.add_generic_rpc_handlers((_reflection_v1(names),))

    async def start(self) -> None:
        """Answer. Until ``be_ready`` health says NOT_SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._trust:
            await self._trust.start()
        await self._api.start()
        await self._admin.start()

    async def be_ready(self) -> None:
        """Say that the model is loaded, and that agents and clients are welcome: health is SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *SERVICES):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end streams, and end the calls that run after ``grace_s``."""
        await self._health.enter_graceful_shutdown()
        if self._metrics is not None:
            await self._metrics.stop()
        self._core.publisher.end_all("the controller is stopping", self._core.returns.next_s)
        self._rulesets.close()
        self._audit.close()
        await asyncio.gather(self._api.stop(grace_s), self._admin.stop(grace_s))
        if self._trust:
            await self._trust.stop()
        self._unlisten()


def _bind(server: grpc.aio.Server, name: str, listen: str, tls: grpc.ServerCredentials | None) -> str:
    _check_free(name, listen)
    try:
        port = server.add_insecure_port(listen) if tls is None else server.add_secure_port(listen, tls)
    except RuntimeError:
        raise ConfigError(f"{name} {listen}: can't be bound") from None
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def _check_free(name: str, listen: str) -> None:
    """Find out why an address can't be bound before gRPC, which says it at length and elsewhere, tries."""
    try:
        if listen.startswith("unix:"):
            _check_socket_free(name, Path(listen.removeprefix("unix:")))
            return
        host, _, port = listen.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"{name} {listen}: {error.strerror}") from None


def _check_socket_free(name: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{name} unix:{path}: {path.parent} is not a directory")
    size_bytes = len(os.fsencode(path))
    if size_bytes > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(f"{name} unix:{path}: the path has {size_bytes} bytes, the most allowed is {SOCKET_PATH_BYTES_MAX}")
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{name} unix:{path}: there is a file that is no socket")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Left behind by a process that is gone; gRPC takes its place.
            return
    raise ConfigError(f"{name} unix:{path}: in use by another process")


def _reflection_v1(names: Sequence[str]) -> grpc.GenericRpcHandler:
    _make_reflection_v1_known()
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler})


def _make_reflection_v1_known() -> None:
    """Describe the stable name as well: clients that describe all that is listed would stumble over it."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(REFLECTION_V1)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
        text = text_format.MessageToString(file).replace("v1alpha", "v1")
        pool.AddSerializedFile(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString())


async def run_controller(config: ControllerConfig, read_again: Callable[[], ControllerConfig]) -> None:
    """Run until SIGTERM or SIGINT; at SIGHUP the settings are read again. StartError if it can't start."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, Reloading(config, read_again).reload)
    _tune_interpreter()
    core = _core(config)
    try:
        server = ControllerServer(core, config)
        await server.start()
        try:
            if config.ready_file:
                _write_ready_file(Path(config.ready_file), server)
            await server.be_ready()
            notify(READY)
            log.info(
                "controller_started",
                address=server.address,
                admin_address=server.admin_address,
                data_dir=config.data_dir,
                store_epoch=core.store_epoch,
                revision=core.state.revision,
                connections_max=server.connections_max,
                version=version("secgroups"),
            )
            await stopped.wait()
            notify(STOPPING)
            log.info("controller_stopping", drain_s=config.drain_s)
        finally:
            await server.stop(config.drain_s)
    finally:
        await core.close()
    log.info("controller_stopped", revision=core.state.revision)


def _tune_interpreter() -> None:
    """Have threads take turns, and garbage be looked for, as suits a process that answers many and makes hardly any garbage."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(GARBAGE_OBJECTS_MIN, 10, 20)


def _core(config: ControllerConfig) -> Core:
    """Read everything. StartError if that can't be done.

    None of it is garbage, and there are no cycles in it: looking for some while it grows would take a third of the start, and later
    collections, which hold up every call, leave out what is there now.
    """
    gc.disable()
    try:
        return Core(SqliteStore(_data_dir(config) / DATABASE, limits=config.limits()))
    finally:
        gc.freeze()
        gc.enable()


def _data_dir(config: ControllerConfig) -> Path:
    """Return the data directory, made if that is wanted. ConfigError if there is none."""
    path = Path(config.data_dir)
    try:
        if config.create:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not path.is_dir():
            what = "is not a directory" if path.exists() else "does not exist; make it, or start with --create"
            raise ConfigError(f"data_dir {path} {what}")
    except OSError as error:
        raise ConfigError(f"data_dir {path} can't be used: {error.strerror}") from None
    return path


def _write_ready_file(path: Path, server: ControllerServer) -> None:
    """Tell whoever started this controller that it serves, and where; all at once. ConfigError if that can't be written."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    addresses = {
        "address": server.address,
        "agent_address": server.agent_address,
        "admin_address": server.admin_address,
        "metrics_address": server.metrics_address,
    }
    try:
        new.write_text(json.dumps(addresses) + "\n")
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"ready_file {path} can't be written: {error.strerror}") from None
