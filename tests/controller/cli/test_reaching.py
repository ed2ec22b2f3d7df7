"""What stands in the way to a controller, step by step: its name, its port, its socket, its certificate."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
import trustme

from secgroups.cli.diagnosis.reaching import look_at_address

AUTHORITY = trustme.CA()
CA = AUTHORITY.cert_pem.bytes().decode()


@contextmanager
def served(name: str, ends_in_days: float) -> Iterator[str]:
    """Serve TLS for one connection, with a certificate for ``name``; yield the address."""
    ends = datetime.now(UTC) + timedelta(days=ends_in_days)
    begun = min(datetime.now(UTC), ends) - timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name, not_before=begun, not_after=ends).configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)

        server = Thread(target=serve)
        server.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.join(20)


@pytest.mark.parametrize(
    ("expected", "name", "ends_in_days"),
    [
        (None, "127.0.0.1", 30),
        ("CERTIFICATE_ENDS", "127.0.0.1", 13),
        ("CONTROLLER_CERTIFICATE", "127.0.0.1", -1),
        ("CONTROLLER_CERTIFICATE", "127.0.0.2", 30),
    ],
    ids=str,
)
def test_a_certificate_that_ends_soon_ended_or_is_for_another_name_is_found(
    expected: str | None, name: str, ends_in_days: float
) -> None:
    with served(name, ends_in_days) as address:
        finding = look_at_address(address, CA)
    assert (finding.what if finding else None) == expected


def test_a_name_that_nobody_knows_is_found() -> None:
    finding = look_at_address("controller.invalid:7700", CA)
    assert finding is not None
    assert finding.text.startswith("the name controller.invalid can't be resolved")


def test_an_authority_that_is_no_certificate_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        finding = look_at_address(f"127.0.0.1:{listener.getsockname()[1]}", "no PEM")
    assert finding is not None
    assert "(--ca-file) is none" in finding.text


def test_a_socket_is_looked_at_for_being_one_that_somebody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen()
        assert look_at_address(f"unix:{tmp_path}/api.sock", None) is None
    (tmp_path / "file").touch()
    for name, reason in (("api.sock", "Connection refused"), ("file", "Connection refused"), ("nothing", "No such file")):
        finding = look_at_address(f"unix:{tmp_path}/{name}", None)
        assert finding is not None
        assert reason in finding.text
