"""A controller with TLS as a process, and whoever calls it: by token, by certificate, or by neither."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
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

    def show(self, folder: Path) -> grpc.Channel:
        """Return a channel to where agents subscribe, with the files of one."""
        key, certificate = ((folder / name).read_bytes() for name in ("agent-key.pem", "agent.pem"))
        return grpc.secure_channel(self.controller.agent_address, grpc.ssl_channel_credentials(self.ca, key, certificate))

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


def issued_before(site: Site, agent_id: str, folder: Path, *, begun_days_ago: float, ends_in_days: float) -> x509.Certificate:
    """Write the files of an agent that was enrolled some time ago, of which the database knows nothing; return its certificate."""
    authority = x509.load_pem_x509_certificate(site.ca)
    signing = serialization.load_pem_private_key((site.stack.trust_folder / "ca-key.pem").read_bytes(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=begun_days_ago))
        .not_valid_after(now + timedelta(days=ends_in_days))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"secgroups://agent/{agent_id}")]), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    folder.mkdir(parents=True)
    (folder / "ca.pem").write_bytes(site.ca)
    encoding = serialization.Encoding.PEM
    (folder / "agent-key.pem").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "agent.pem").write_bytes(made.public_bytes(encoding))
    return made


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
