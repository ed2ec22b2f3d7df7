"""The operator's token is lost: whoever owns the machine makes another, though other admins are left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from trusted_site import TIMEOUT_S, Site, bearer

from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


NOBODY = 65_534


def reset(*arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "secgroups.controller", "reset-operator-token", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done
    assert "sgt_" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def who(site: Site, token: str) -> str:
    """Return the name of a token, or the code of the refusal."""
    with site.tls() as channel:
        try:
            return TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), metadata=bearer(token), timeout=TIMEOUT_S).token.name
        except grpc.RpcError as error:
            return str(error.code().name)


def test_a_new_one_is_made_and_the_old_one_is_revoked(lost: Site) -> None:
    folder = lost.stack.trust_folder.parent
    path = lost.stack.trust_folder / "operator.token"
    old, (other_id, other) = path.read_text().strip(), lost.token(pb.ROLE_ADMIN)
    assert "in use by another controller" in reset("--data-dir", str(folder), status=2)
    assert path.read_text().strip() == old
    lost.controller.stop()
    path.unlink()
    assert f"the operator's token is in {path}; tokens revoked in its place: 1" in reset("--data-dir", str(folder))
    assert path.stat().st_mode & 0o777 == 0o600
    lost.controller.start()
    new = path.read_text().strip()
    assert (who(lost, new), who(lost, old), who(lost, other)) == ("operator", "UNAUTHENTICATED", "test")
    with lost.tls() as channel:
        trail = channel.unary_unary(
            "/secgroups.v1.AuditService/ListChanges",
            request_serializer=lambda _: b"",
            response_deserializer=lambda data: data,
        )(None, metadata=bearer(other), timeout=TIMEOUT_S)
    assert b"reset-operator-token" in trail
    assert other_id.encode() in trail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are another's")
def test_what_root_makes_is_given_to_the_owner_of_the_folder(lost: Site) -> None:
    folder = lost.stack.trust_folder.parent
    lost.controller.stop()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (folder / "secgroups.db.lock").unlink(missing_ok=True)
    reset("--data-dir", str(folder))
    assert {path.name: path.stat().st_uid for path in folder.rglob("*") if path.stat().st_uid != NOBODY} == {}
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 0, 0)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_where_there_is_no_controller_nothing_is_made(tmp_path: Path, name: str) -> None:
    if name == "empty":
        (tmp_path / name).mkdir()
    assert "has no secgroups.db" in reset("--data-dir", str(tmp_path / name), status=2)
    assert "--data-dir" in reset(status=2)
    assert not list((tmp_path / name).glob("*"))
