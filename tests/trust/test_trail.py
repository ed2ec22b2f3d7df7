"""The trail of tokens, certificates and limits: all of it for admins, none of it for anybody else, and no secret in it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing

import grpc
import pytest
from trusted_site import TIMEOUT_S, Site, bearer

from secgroups.v1 import audit_service_pb2 as audit
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import limit_service_pb2 as limits
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.audit_service_pb2_grpc import AuditServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.limit_service_pb2_grpc import LimitServiceStub

PROJECT = "trail"


def listed(site: Site, project: str = "", token: str = "", page_size: int = 1000) -> list[audit.Change]:
    """Return the trail as the operator or the holder of a token sees it."""
    found: list[audit.Change] = []
    with site.tls() as own:
        stub = AuditServiceStub(own if token else site.channel)
        request = audit.ListChangesRequest(project=project, page_size=page_size)
        while True:
            page = stub.ListChanges(request, metadata=bearer(token) if token else (), timeout=TIMEOUT_S)
            found += page.changes
            if not page.next_page_token:
                return found
            assert page.changes
            request.page_token = page.next_page_token


def shown(change: audit.Change) -> tuple[str, str]:
    """Return what kind of object it is, and what became of it."""
    thing = change.after if change.HasField("after") else change.before
    what = "changed" if change.HasField("before") else "made"
    return str(thing.WhichOneof("object")), what if change.HasField("after") else "deleted"


@pytest.fixture(scope="module")
def operator_id(site: Site) -> str:
    """The id of the operator's token."""
    return site.trust.WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).token.id


@pytest.fixture(scope="module")
def editor(site: Site) -> tuple[str, str]:
    return site.token(pb.ROLE_EDITOR, PROJECT)


@pytest.fixture(scope="module")
def decided(site: Site, editor: tuple[str, str]) -> list[str]:
    """What an admin has decided besides, and the secrets of it."""
    token_id, text = site.token(pb.ROLE_VIEWER, PROJECT)
    site.trust.RevokeToken(pb.RevokeTokenRequest(id=token_id), timeout=TIMEOUT_S)
    site.enroll("trailed").close()
    for _ in range(2):
        site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="trailed"), timeout=TIMEOUT_S)
    change = limits.LimitChange(kind=limits.LIMIT_KIND_RULES_PER_GROUP, most=9)
    LimitServiceStub(site.channel).UpdateLimits(limits.UpdateLimitsRequest(project=PROJECT, changes=[change]), timeout=TIMEOUT_S)
    with site.tls() as own:
        for number in range(3):
            request = groups.CreateGroupRequest(project=PROJECT, name=f"g{number}")
            GroupServiceStub(own).CreateGroup(request, metadata=bearer(editor[1]), timeout=TIMEOUT_S)
    return [text, editor[1]]


def test_admins_see_who_made_and_revoked_what(site: Site, decided: list[str], operator_id: str, editor: tuple[str, str]) -> None:
    everything = listed(site)
    whose = [change for change in everything if "trailed" in str(change) or PROJECT in str(change)]
    assert [shown(change) for change in whose if shown(change)[0] not in ("group", "rule")] == [
        ("limits", "made"),
        ("revocation", "changed"),
        ("revocation", "made"),
        ("certificate", "made"),
        ("token", "deleted"),
        ("token", "made"),
        ("token", "made"),
    ]
    decisions = [change for change in whose if shown(change)[0] not in ("group", "rule")]
    assert {change.token_id for change in decisions} == {operator_id}
    assert all(change.peer.startswith("ipv4:127.0.0.1:") and change.time.seconds for change in decisions)
    assert decisions[-1].after.token.id == editor[0]
    assert decisions[-1].after.token.role == pb.ROLE_EDITOR
    # The first token of all was made by the controller itself.
    first = everything[-1]
    assert (shown(first), first.after.token.id, first.token_id, first.peer) == (("token", "made"), operator_id, "", "controller")
    # What belongs to a project is listed with it.
    assert {shown(change)[0] for change in listed(site, PROJECT)} == {"limits", "token", "group", "rule"}


def test_no_secret_is_in_the_trail_or_in_the_log_behind_it(site: Site, decided: list[str]) -> None:
    with closing(sqlite3.connect(f"file:{site.stack.trust_folder.parent / 'secgroups.db'}?mode=ro", uri=True)) as connection:
        hashes = [row[0] for row in connection.execute("SELECT hash FROM tokens")]
        rows = connection.execute("SELECT * FROM changes").fetchall()
    operator = (site.stack.trust_folder / "operator.token").read_text().strip()
    said = f"{listed(site)} {rows}"
    assert hashes
    for secret in (*decided, operator):
        assert secret not in said
        assert secret.rpartition("_")[2] not in said
    for kept in hashes:
        assert kept.hex() not in said
        assert str(kept) not in said
    assert "PRIVATE KEY" not in said


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_a_project_sees_its_own_changes_and_nothing_of_what_admins_decide(
    site: Site, decided: list[str], editor: tuple[str, str], page_size: int
) -> None:
    # Every page is full but the last: one that is not would tell that there is something between.
    found = listed(site, PROJECT, editor[1], page_size)
    assert {shown(change)[0] for change in found} == {"group", "rule"}
    whole = [change for change in listed(site, PROJECT) if shown(change)[0] in ("group", "rule")]
    assert [(change.revision, shown(change)) for change in found] == [(change.revision, shown(change)) for change in whole]


def test_a_project_watches_its_own_changes_and_nothing_of_what_admins_decide(
    site: Site, decided: list[str], editor: tuple[str, str]
) -> None:
    with site.tls() as own:
        seen = AuditServiceStub(own).WatchChanges(
            audit.WatchChangesRequest(project=PROJECT), metadata=bearer(editor[1]), timeout=TIMEOUT_S
        )
        all_of_it = AuditServiceStub(site.channel).WatchChanges(audit.WatchChangesRequest(project=PROJECT), timeout=TIMEOUT_S)
        begun = threading.Event()
        changing = threading.Thread(target=_decide_and_change, args=(site, begun))
        changing.start()
        first, first_of_all = next(seen), next(all_of_it)
        while shown(first_of_all.changes[0])[0] == "group":
            first_of_all = next(all_of_it)
        begun.set()
        changing.join()
        kinds = {shown(change)[0] for answer in (first, *_until(seen, "last")) for change in answer.changes}
        assert kinds == {"group", "rule"}
        assert shown(first_of_all.changes[0]) == ("token", "made")
        seen.cancel()
        all_of_it.cancel()


def _until(answers: Iterator[audit.WatchChangesResponse], name: str) -> Iterator[audit.WatchChangesResponse]:
    for answer in answers:
        yield answer
        if any(change.after.group.name == name for change in answer.changes):
            return


def _decide_and_change(site: Site, begun: threading.Event) -> None:
    """Make tokens and groups in turn until both watches have begun, then one group more."""
    stub = GroupServiceStub(site.channel)
    number = 0
    while not begun.is_set() and number < 500:
        site.token(pb.ROLE_VIEWER, PROJECT, lifetime_s=1)
        stub.CreateGroup(groups.CreateGroupRequest(project=PROJECT, name=f"watched-{number}"), timeout=TIMEOUT_S)
        number += 1
    site.token(pb.ROLE_VIEWER, PROJECT, lifetime_s=1)
    stub.CreateGroup(groups.CreateGroupRequest(project=PROJECT, name="last"), timeout=TIMEOUT_S)


def test_a_renewal_is_in_the_trail_as_the_agent_s_own(site: Site, decided: list[str]) -> None:
    from trusted_site import key_and_csr

    from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

    with site.enroll("renewing-in-trail") as channel:
        request = pb.EnrollAgentRequest(agent_id="renewing-in-trail", csr_pem=key_and_csr()[1])
        TrustServiceStub(channel).EnrollAgent(request, timeout=TIMEOUT_S)
    made = [change for change in listed(site) if change.after.certificate.agent_id == "renewing-in-trail"]
    assert [change.token_id.startswith("agent/renewing-in-trail") for change in made] == [True, False]


def test_nobody_is_told_of_a_token_that_can_t_be_kept(site: Site) -> None:
    before = len(listed(site))
    with pytest.raises(grpc.RpcError):
        site.trust.CreateToken(pb.CreateTokenRequest(name="x", role=pb.ROLE_ADMIN, project="p"), timeout=TIMEOUT_S)
    assert len(listed(site)) == before
