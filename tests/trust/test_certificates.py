"""The files of trust: made once, private, renewed, replaced while it runs; and starts that can't be."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography import x509
from trusted_site import TIMEOUT_S, Site

from secgroups.cli import contexts
from secgroups.controller.trust import authority
from secgroups.lab.stack import Process, StackError
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub


def write_for_controller(path: Path) -> None:
    authority.write_private(path, b"secret")


def write_for_cli(path: Path) -> None:
    contexts.write_private(path, "secret")


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
    return Process(
        name="controller",
        arguments=arguments,
        ready_file=folder / "ready",
        log_file=folder / "log",
        environment={**os.environ, **WITH_TLS},
    )


def refused(*arguments: str) -> str:
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


def test_an_authority_without_its_key_is_not_replaced_by_another(tmp_path: Path) -> None:
    """Every agent would have to be enrolled again, and a copy of the key may be at hand."""
    process = controller(tmp_path)
    process.start()
    process.stop()
    trust = tmp_path / "data" / "trust"
    ca = (trust / "ca.pem").read_bytes()
    (trust / "ca-key.pem").unlink()
    with pytest.raises(StackError, match=r"ca-key\.pem"):
        process.start()
    assert (trust / "ca.pem").read_bytes() == ca
    assert not (trust / "ca-key.pem").exists()


def test_a_first_start_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    process = controller(tmp_path)
    process.start()
    process.stop()
    trust = tmp_path / "data" / "trust"
    for path in trust.iterdir():
        if path.name != "ca-key.pem":
            path.unlink()
    process.start()
    process.stop()
    made = x509.load_pem_x509_certificate((trust / "server.pem").read_bytes())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate((trust / "ca.pem").read_bytes()))


@pytest.mark.parametrize("name", ["server.pem", "server-key.pem"])
@pytest.mark.parametrize("content", ["damaged", "another"])
def test_a_server_s_certificate_and_key_that_do_not_fit_are_made_anew(tmp_path: Path, name: str, content: str) -> None:
    """As after a renewal that was cut off between the two."""
    process = controller(tmp_path)
    process.start()
    process.stop()
    trust = tmp_path / "data" / "trust"
    ca = (trust / "ca.pem").read_bytes()
    other = {"server.pem": ca, "server-key.pem": (trust / "ca-key.pem").read_bytes()}
    (trust / name).write_bytes(other[name] if content == "another" else b"damaged")
    process.start()
    try:
        with grpc.secure_channel(process.address, grpc.ssl_channel_credentials(ca)) as channel:
            grpc.channel_ready_future(channel).result(TIMEOUT_S)
    finally:
        process.stop()
    assert (trust / "ca.pem").read_bytes() == ca


def test_a_folder_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    trust = tmp_path / "data" / "trust"
    trust.mkdir(mode=0o777, parents=True)
    trust.chmod(0o777)
    process = controller(tmp_path)
    process.start()
    process.stop()
    assert trust.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("write", [write_for_controller, write_for_cli], ids=["controller", "sgctl"])
def test_a_secret_is_written_into_no_file_that_somebody_else_has_made(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the file, or a link in its place, could read what is written."""
    seen, secret = tmp_path / "seen", tmp_path / "secret"
    seen.touch(mode=0o666)
    # All names that a process of this number could take, as far as they can be guessed.
    (tmp_path / f"secret.{os.getpid()}.new").symlink_to(seen)
    write(secret)
    assert secret.read_text() == "secret"
    assert (secret.stat().st_mode & 0o777, seen.read_text()) == (0o600, "")
    # And one that could be guessed all the same is refused.
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "secret.guessed.new").symlink_to(seen)
    with pytest.raises(FileExistsError):
        write(secret)
    assert seen.read_text() == ""


def test_an_admin_whose_token_has_expired_is_none_and_the_operator_s_is_made_anew(own_site: Site) -> None:
    own_site.controller.stop()
    with closing(sqlite3.connect(own_site.stack.trust_folder.parent / "secgroups.db")) as database, database:
        database.execute("UPDATE tokens SET expires_us = 1")
    own_site.controller.start()
    with own_site.stack.channel() as channel:
        assert who(channel) == "operator"


def test_a_token_that_can_not_be_is_damage_and_told_in_one_line(own_site: Site) -> None:
    own_site.controller.stop()
    with closing(sqlite3.connect(own_site.stack.trust_folder.parent / "secgroups.db")) as database, database:
        database.execute("UPDATE tokens SET role = 9")
    with pytest.raises(StackError, match=r"error: .*secgroups.db is damaged"):
        own_site.controller.start()
    assert "Traceback" not in own_site.controller.log_file.read_text()


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
