"""The files of trust: made once, private, renewed, replaced while it runs; and starts that can't be."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509
from trusted_site import TIMEOUT_S, Site

from secgroups.lab.stack import Process, StackError
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

FILES = ("ca.pem", "ca-key.pem", "server.pem", "server-key.pem", "operator.token")
WITH_TLS = {"SECGROUPS_CONTROLLER_PLAINTEXT": "false", "SECGROUPS_AGENT_PLAINTEXT": "false"}


@pytest.fixture
def own_site(tmp_path: Path):
    made = Site(tmp_path)
    yield made
    made.stop()


def controller(folder: Path, *flags: str) -> Process:
    listen = [word for name in ("listen", "agent-listen", "admin-listen") for word in (f"--{name}", "127.0.0.1:0")]
    arguments = ["secgroups.controller", "--data-dir", str(folder / "data"), "--create", *listen, *flags]
    import os

    return Process(
        name="controller",
        arguments=arguments,
        ready_file=folder / "ready",
        log_file=folder / "log",
        environment={**os.environ, **WITH_TLS},
    )


def refused(*arguments: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-m", *arguments], env={**os.environ, **WITH_TLS}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def who(channel: grpc.Channel) -> str:
    return TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).token.name


def test_all_is_made_at_the_first_start_private_and_kept(own_site: Site) -> None:
    folder = own_site.stack.trust_folder
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(FILES, 0o600)
    assert folder.stat().st_mode & 0o777 == 0o700
    before = {name: (folder / name).read_bytes() for name in FILES}
    log = own_site.controller.log_file.read_text()
    assert str(folder / "operator.token") in log
    assert before["operator.token"].decode().strip() not in log
    assert "PRIVATE KEY" not in log
    own_site.controller.stop()
    own_site.controller.start()
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    with own_site.stack.channel() as channel:
        assert who(channel) == "operator"


def test_tokens_and_revocations_outlive_a_killed_controller(own_site: Site) -> None:
    kept_id, kept = own_site.token(pb.ROLE_ADMIN)
    gone_id, gone = own_site.token(pb.ROLE_ADMIN)
    own_site.trust.RevokeToken(pb.RevokeTokenRequest(id=gone_id))
    own_site.controller.kill()
    own_site.controller.start()
    with own_site.stack.channel() as channel:
        ids = {token.id for token in TrustServiceStub(channel).ListTokens(pb.ListTokensRequest(), timeout=TIMEOUT_S).tokens}
    assert kept_id in ids
    assert gone_id not in ids
    # Neither text is anywhere on the disk.
    data = b"".join(path.read_bytes() for path in (own_site.stack.trust_folder.parent).glob("secgroups.db*"))
    assert kept.encode() not in data
    assert gone.encode() not in data


def test_a_certificate_is_made_anew_for_another_name_and_by_the_same_authority(tmp_path: Path) -> None:
    first = controller(tmp_path)
    first.start()
    first.stop()
    trust = tmp_path / "data" / "trust"
    ca, held = (trust / "ca.pem").read_bytes(), (trust / "server.pem").read_bytes()
    second = controller(tmp_path, "--tls-names", "sg.example.net, 192.0.2.7")
    second.start()
    second.stop()
    made = x509.load_pem_x509_certificate((trust / "server.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"sg.example.net", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"192.0.2.7", "127.0.0.1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
    assert (trust / "ca.pem").read_bytes() == ca
    assert (trust / "server.pem").read_bytes() != held
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


def test_own_certificates_are_replaced_while_it_runs(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key, ca = (tmp_path / name for name in ("own.pem", "own-key.pem", "own-ca.pem"))
    authority.cert_pem.write_to_path(str(ca))

    def issue() -> int:
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number

    def shown(address: str) -> int:
        import ssl

        host, _, port = address.rpartition(":")
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number

    first = issue()
    process = controller(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key), "--tls-ca", str(ca))
    process.start()
    try:
        assert shown(process.address) == first
        certificate.write_text("half of it")
        assert shown(process.address) == first
        second = issue()
        assert (shown(process.address), shown(process.agent_address)) == (second, second)
        assert "certificate_not_reloaded" in process.log_file.read_text()
    finally:
        process.stop()


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem"])
def test_a_damaged_authority_is_refused_and_not_replaced(tmp_path: Path, name: str) -> None:
    process = controller(tmp_path)
    process.start()
    process.stop()
    path = tmp_path / "data" / "trust" / name
    path.write_text("damaged")
    with pytest.raises(StackError, match="trust holds what is no certificate or key"):
        process.start()
    assert path.read_text() == "damaged"


def test_the_last_admin_can_be_made_again_by_a_restart(own_site: Site) -> None:
    (operator,) = own_site.trust.ListTokens(pb.ListTokensRequest(), timeout=TIMEOUT_S).tokens
    own_site.trust.RevokeToken(pb.RevokeTokenRequest(id=operator.id), timeout=TIMEOUT_S)
    with pytest.raises(grpc.RpcError):
        own_site.trust.ListTokens(pb.ListTokensRequest(), timeout=TIMEOUT_S)
    own_site.controller.stop()
    own_site.controller.start()
    with own_site.stack.channel() as channel:
        assert who(channel) == "operator"


@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("without TLS only loopback", ("--plaintext", "--listen", "0.0.0.0:0")),
        ("exclude each other", ("--plaintext", "--tls-names", "x")),
        ("go together", ("--tls-cert", "/x")),
        ("/nowhere.pem can't be read", ("--tls-cert", "/nowhere.pem", "--tls-key", "/nowhere.pem")),
    ],
)
def test_a_controller_that_can_not_be_trusted_does_not_start(tmp_path: Path, expected: str, flags: tuple[str, ...]) -> None:
    assert expected in refused("secgroups.controller", "--data-dir", str(tmp_path), *flags)


@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("sgctl agent enroll", ()),
        ("without TLS only loopback", ("--plaintext", "--controller", "192.0.2.1:7700")),
        ("exclude each other", ("--plaintext", "--tls-dir", "/x")),
    ],
)
def test_an_agent_that_can_not_be_trusted_does_not_start(tmp_path: Path, expected: str, flags: tuple[str, ...]) -> None:
    arguments = ("--agent-id", "a", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0")
    assert expected in refused("secgroups.agent", *arguments, *flags)


def test_an_agent_shows_its_new_certificate_when_it_comes_back(own_site: Site, tmp_path: Path) -> None:
    """Revoked, then enrolled again into the same folder: it connects without a restart."""
    agent = own_site.stack.start_agent("a1")
    folder = tmp_path / "a1" / "tls"
    log = agent.log_file
    wait_for(log, "controller_connected", 1)
    own_site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="a1"), timeout=TIMEOUT_S)
    wait_for(log, "UNAUTHENTICATED", 1)
    own_site.stack._enroll("a1", folder)
    wait_for(log, "controller_connected", 2)


def wait_for(log: Path, text: str, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while log.read_text().count(text) < count:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
