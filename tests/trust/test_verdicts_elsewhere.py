"""An agent that answers beyond its own host: with TLS, as itself, and to operators and itself alone."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2
from trusted_site import TIMEOUT_S, Site, bearer, call, key_and_csr

from secgroups.controller.trust.authority import agent_server_name
from secgroups.lab.stack import Process, environment_of
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1 import verdict_service_pb2
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

AGENT = "answering 1"
METHODS = {
    f"{method.containing_service.name}/{method.name}": method
    for descriptor in (verdict_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in descriptor.services_by_name.values()
    for method in service.methods
}


@pytest.fixture(scope="module")
def agent(site: Site) -> Process:
    return site.stack.start_agent(AGENT, "--listen-tls")


def folder(site: Site) -> Path:
    """Return the files of the agent."""
    return site.stack.trust_folder.parent.parent / AGENT / "tls"


@contextmanager
def asking(site: Site, address: str, key_pem: bytes | None, certificate_pem: bytes | None) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(site.ca, key_pem, certificate_pem)
    options = [("grpc.ssl_target_name_override", agent_server_name(AGENT))]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


def operator_certificate(site: Site) -> tuple[bytes, bytes]:
    """Return a key and what the controller has issued for it to an admin."""
    key, csr = key_and_csr()
    made = site.trust.IssueOperatorCertificate(pb.IssueOperatorCertificateRequest(agent_id=AGENT, csr_pem=csr), timeout=TIMEOUT_S)
    assert (made.authority_pem.encode(), made.agent_server_name) == (site.ca, agent_server_name(AGENT))
    return key, made.certificate_pem.encode()


def agent_certificate(site: Site, agent_id: str) -> tuple[bytes, bytes]:
    key, csr = key_and_csr()
    made = site.trust.EnrollAgent(pb.EnrollAgentRequest(agent_id=agent_id, csr_pem=csr), timeout=TIMEOUT_S)
    return key, made.certificate_pem.encode()


def signed(site: Site, uri: str, ends: timedelta, signing: ec.EllipticCurvePrivateKey | None = None) -> tuple[bytes, bytes]:
    """Return a key and a certificate that the authority, or ``signing`` in its name, has signed."""
    authority = x509.load_pem_x509_certificate(site.ca)
    own = serialization.load_pem_private_key((site.stack.trust_folder / "ca-key.pem").read_bytes(), None)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signing or own, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, made.public_bytes(encoding)


@pytest.mark.parametrize("name", METHODS)
def test_operators_and_the_agent_itself_are_answered_and_another_agent_is_not(site: Site, agent: Process, name: str) -> None:
    method = METHODS[name]
    told = {}
    for who, shown in (
        ("operator", operator_certificate(site)),
        ("itself", agent_certificate(site, AGENT)),
        ("another", agent_certificate(site, "another")),
    ):
        with asking(site, agent.address, *shown) as channel:
            told[who] = call(channel, method, (), protocol=6) if "Watch" not in name else _first_of(channel, name)
    assert told.pop("another").startswith("PERMISSION_DENIED: this agent answers operators")
    assert not [
        answer for answer in told.values() if answer.startswith(("PERMISSION", "UNAUTHENTICATED", "UNAVAILABLE", "INTERNAL"))
    ]


def _first_of(channel: grpc.Channel, name: str) -> str:
    """Return with what a watch is refused; one that goes on is left after a moment."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = channel.unary_stream(path)(b"", timeout=1)
    try:
        next(answers)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    answers.cancel()
    return "OK"


def test_who_shows_nothing_or_what_the_authority_has_not_signed_or_what_has_ended_does_not_come_in(
    site: Site, agent: Process
) -> None:
    check, operator = METHODS["Health/Check"], "secgroups://operator/0123456789abcdef"
    day = timedelta(days=1)
    for shown in (
        (None, None),
        signed(site, operator, -day),
        signed(site, operator, day, ec.generate_private_key(ec.SECP256R1())),
    ):
        with asking(site, agent.address, *shown) as channel:
            assert call(channel, check, ()).startswith("UNAVAILABLE")
    # Their neighbours: the same with a time to come, and names that only look like it.
    for uri, answer in (
        (operator, "OK"),
        ("secgroups://operators/0123456789abcdef", "PERMISSION_DENIED"),
        ("secgroups://agent/answering", "PERMISSION_DENIED"),
        ("secgroups://agent/answering%201", "OK"),
    ):
        with asking(site, agent.address, *signed(site, uri, day)) as channel:
            assert call(channel, check, ()).startswith(answer)
    with grpc.insecure_channel(agent.address) as channel:
        assert call(channel, check, ()).startswith("UNAVAILABLE")


def test_sgctl_asks_the_agent_that_is_meant_and_no_other(site: Site, agent: Process) -> None:
    def sgctl(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "secgroups.cli", *arguments]
        environment = environment_of(site.stack, "default")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    assert sgctl("agent", "flows", "--agent-address", f"{AGENT}@{agent.address}", "-o", "json") == (0, "[]\n")
    status, said = sgctl("--timeout", "5", "agent", "flows", "--agent-address", f"someone else@{agent.address}")
    assert (status, "can't be reached" in said) == (2, True)
    status, said = sgctl("agent", "flows", "--agent-address", "192.0.2.1:7710")
    assert (status, "AGENT_ID@HOST:PORT" in said) == (2, True)


def test_a_tenant_gets_no_certificate_to_ask_with_and_an_operator_s_is_of_no_use_to_subscribe(site: Site) -> None:
    _, token = site.token(pb.ROLE_EDITOR, "p")
    request = pb.IssueOperatorCertificateRequest(agent_id=AGENT, csr_pem=key_and_csr()[1])
    with site.tls() as channel, pytest.raises(grpc.RpcError) as refused:
        TrustServiceStub(channel).IssueOperatorCertificate(request, metadata=bearer(token), timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    key, certificate = operator_certificate(site)
    credentials = grpc.ssl_channel_credentials(site.ca, key, certificate)
    with grpc.secure_channel(site.controller.agent_address, credentials) as channel, pytest.raises(grpc.RpcError) as refused:
        TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_certificate_of_an_operator_ends_within_the_hour(site: Site) -> None:
    made = x509.load_pem_x509_certificate(operator_certificate(site)[1])
    assert made.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=1)
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_new_certificate_counts_with_the_next_connection(site: Site, agent: Process) -> None:
    before = _serial_shown(site, agent.address)
    key, certificate = agent_certificate(site, AGENT)
    # As sgctl agent enroll does it.
    for name, content in (("agent-key.pem", key), ("agent.pem", certificate)):
        new = folder(site) / f"{name}.new"
        new.write_bytes(content)
        new.replace(folder(site) / name)
    wanted = x509.load_pem_x509_certificate(certificate).serial_number
    assert (before == wanted, _serial_shown(site, agent.address)) == (False, wanted)
    # What is half written is not shown: what was in use stays.
    (folder(site) / "agent.pem").rename(folder(site) / "aside")
    assert _serial_shown(site, agent.address) == wanted
    (folder(site) / "aside").rename(folder(site) / "agent.pem")


def _serial_shown(site: Site, address: str) -> int:
    """Return the serial number of the certificate that an agent shows."""
    context = ssl.create_default_context(cadata=site.ca.decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), TIMEOUT_S)
    with plain, context.wrap_socket(plain, server_hostname=agent_server_name(AGENT)) as made:
        shown = made.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


ASK = """
import sys, grpc
from pathlib import Path
from grpc_health.v1 import health_pb2, health_pb2_grpc
address, name, folder = sys.argv[1:]
files = [Path(folder, each).read_bytes() for each in ("ca.pem", "agent-key.pem", "agent.pem")]
for shown in (files, [files[0], None, None], None):
    options = [("grpc.ssl_target_name_override", name)] if shown else []
    made = grpc.secure_channel(address, grpc.ssl_channel_credentials(*shown), options) if shown else grpc.insecure_channel(address)
    try:
        health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(), timeout=20)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="only root can make network namespaces, with iproute2")
def test_beyond_loopback_there_is_no_plain_text_whatever_is_asked_for(site: Site, agent: Process, tmp_path: Path) -> None:
    namespace, address = f"verdicts-{os.getpid()}", "192.0.2.7"
    if subprocess.run(["ip", "netns", "add", namespace], capture_output=True).returncode:
        pytest.skip("namespaces are not allowed")
    try:
        within = ["ip", "netns", "exec", namespace]
        for command in (["ip", "link", "set", "lo", "up"], ["ip", "address", "add", f"{address}/32", "dev", "lo"]):
            subprocess.run([*within, *command], check=True)
        state = tmp_path / "state"
        state.mkdir()
        flags = [
            "--agent-id",
            AGENT,
            "--state-dir",
            str(state),
            "--listen",
            f"{address}:7711",
            "--ready-file",
            str(tmp_path / "ready"),
        ]
        command = [*within, sys.executable, "-m", "secgroups.agent", *flags]
        plain = subprocess.run([*command, "--plaintext"], capture_output=True, text=True, timeout=60, check=False)
        assert (plain.returncode, "need TLS" in plain.stderr) == (2, True)
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([*command, "--tls-dir", str(folder(site))], stderr=log, env=_without_settings())
        try:
            while not (tmp_path / "ready").exists():
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            asked = [*within, sys.executable, "-c", ASK, f"{address}:7711", agent_server_name(AGENT), str(folder(site))]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=90, check=True)
            assert done.stdout.split() == ["OK", "UNAVAILABLE", "UNAVAILABLE"]
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SECGROUPS_")}
