"""A controller with TLS as a process, and whoever calls it: by token, by certificate, or by neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from secgroups.lab.stack import Process, Stack
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

TIMEOUT_S = 20.0


class Site:
    """The controller of a stack without agents, and its operator's stubs."""

    def __init__(self, folder: Path) -> None:
        self.stack = Stack(folder, [], tls=True)
        self.stack.start()
        self.channel = self.stack.channel()
        self.trust = TrustServiceStub(self.channel)

    @property
    def controller(self) -> Process:
        return self.stack.controller

    @property
    def ca(self) -> bytes:
        return (self.stack.trust_folder / "ca.pem").read_bytes()

    def tls(self, address: str = "") -> grpc.Channel:
        """Open a channel that shows nothing."""
        return grpc.secure_channel(address or self.controller.address, grpc.ssl_channel_credentials(self.ca))

    def token(self, role: int, project: str = "", lifetime_s: float = 0) -> tuple[str, str]:
        """Make a token; return its id and its text."""
        request = pb.CreateTokenRequest(name="test", role=pb.Role.ValueType(role), project=project)
        if lifetime_s:
            request.lifetime.FromMilliseconds(round(lifetime_s * 1000))
        made = self.trust.CreateToken(request, timeout=TIMEOUT_S)
        return made.token.id, made.text

    def enroll(self, agent_id: str) -> grpc.Channel:
        """Return a channel to where agents subscribe, with a certificate of this agent."""
        key, csr = key_and_csr()
        made = self.trust.EnrollAgent(pb.EnrollAgentRequest(agent_id=agent_id, csr_pem=csr), timeout=TIMEOUT_S)
        credentials = grpc.ssl_channel_credentials(made.ca_pem.encode(), key, made.certificate_pem.encode())
        return grpc.secure_channel(self.controller.agent_address, credentials)

    def stop(self) -> None:
        self.channel.close()
        self.stack.stop()


def key_and_csr() -> tuple[bytes, str]:
    """Return a new key and a request for it, both in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, csr.public_bytes(encoding).decode()


def bearer(token: str) -> Sequence[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


def call(channel: grpc.Channel, method: MethodDescriptor, metadata: Sequence[tuple[str, str]], **fields: Any) -> str:
    """Make a call; return the name of the status, and what was said if it is not OK. A stream is left after its first answer."""
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    known = {name: value for name, value in fields.items() if name in method.input_type.fields_by_name}
    path = f"/{method.containing_service.full_name}/{method.name}"
    codecs = {"request_serializer": request.SerializeToString, "response_deserializer": response.FromString}
    message = request(**known)
    try:
        if method.client_streaming:
            answers = channel.stream_stream(path, **codecs)(iter([message]), metadata=metadata, timeout=TIMEOUT_S)
            next(answers)
            answers.cancel()
        elif method.server_streaming:
            answers = channel.unary_stream(path, **codecs)(message, metadata=metadata, timeout=TIMEOUT_S)
            next(answers)
            answers.cancel()
        else:
            channel.unary_unary(path, **codecs)(message, metadata=metadata, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    except StopIteration:
        pass
    return "OK"
