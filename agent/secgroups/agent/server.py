"""The agent's gRPC server: verdicts, health, reflection."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from secgroups.agent.errors import ConfigError
from secgroups.agent.services.verdicts import Verdicts
from secgroups.v1 import verdict_service_pb2
from secgroups.v1.verdict_service_pb2_grpc import add_VerdictServiceServicer_to_server

VERDICT_SERVICE = verdict_service_pb2.DESCRIPTOR.services_by_name["VerdictService"].full_name
# The stable name of the service, with the messages of its predecessor: they are the same on the wire.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
# sun_path of unix(7), less the zero at its end.
SOCKET_PATH_BYTES_MAX = 107

_OPTIONS = (
    # Two agents on one port would share its calls at random.
    ("grpc.so_reuseport", 0),
)


# Others can reach it: connections cost something before anybody has said who it is. Who was let in is asked anew each hour.
CONNECTIONS_MAX = 1_000
CONNECTION_AGE_MAX_MS = 3_600_000
_PROTECTED_OPTIONS = (
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MAX_MS),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.max_concurrent_streams", 100),
)


@dataclass(frozen=True, slots=True)
class Protected:
    """TLS of an address that others can reach, and who may call there."""

    credentials: grpc.ServerCredentials
    callers: grpc.aio.ServerInterceptor


class AgentServer:
    """Answers on one address; ``address`` is the one that was chosen."""

    def __init__(self, listen: str, verdicts: Verdicts, tls: Protected | None = None) -> None:
        """Bind; without ``tls`` in plain text, for everybody on this host. ConfigError, in one line, if that can't be done."""
        options = (*_OPTIONS, *(_PROTECTED_OPTIONS if tls else ()))
        self._server = grpc.aio.server(options=options, interceptors=[tls.callers] if tls else ())
        self._verdicts = verdicts
        add_VerdictServiceServicer_to_server(verdicts, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (VERDICT_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
        reflection.enable_server_reflection(names, self._server)
        self._server.add_generic_rpc_handlers((_reflection_v1(names),))
        _check_free(listen)
        try:
            port = self._server.add_secure_port(listen, tls.credentials) if tls else self._server.add_insecure_port(listen)
        except RuntimeError:
            raise ConfigError(f"listen {listen}: can't be bound") from None
        self.address = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    async def start(self) -> None:
        """Serve."""
        await self._server.start()
        for name in ("", VERDICT_SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and end those that run after ``grace_s``."""
        await self._health.enter_graceful_shutdown()
        self._verdicts.stop()
        await self._server.stop(grace_s)
        await self._verdicts.close()


def _reflection_v1(names: Iterable[str]) -> grpc.GenericRpcHandler:
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


def _check_free(listen: str) -> None:
    """Find out why an address can't be bound before gRPC, which says it at length and elsewhere, tries."""
    try:
        if listen.startswith("unix:"):
            _check_socket_free(Path(listen.removeprefix("unix:")))
            return
        host, _, port = listen.rpartition(":")
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"listen {listen}: {error.strerror}") from None


def _check_socket_free(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"listen unix:{path}: {path.parent} is not a directory")
    size_bytes = len(os.fsencode(path))
    if size_bytes > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(f"listen unix:{path}: the path has {size_bytes} bytes, the most allowed is {SOCKET_PATH_BYTES_MAX}")
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"listen unix:{path}: there is a file that is no socket")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Left behind by a process that is gone; gRPC takes its place.
            return
    raise ConfigError(f"listen unix:{path}: in use by another process")
