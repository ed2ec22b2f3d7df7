"""Whoever is revoked is out: whatever is under way, whatever the database has forgotten, whoever stops waiting for it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
from trusted_site import TIMEOUT_S, Site, issued_before, key_and_csr

from secgroups.controller.core import WAITING_MAX, Core
from secgroups.controller.errors import LimitError, StoreUnavailableError, UnauthenticatedError
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.trust.authority import Issued
from secgroups.controller.trust.credentials import CERTIFICATES_PER_AGENT_MAX, Credentials
from secgroups.controller.trust.gate import Sessions
from secgroups.controller.trust.kept import Token
from secgroups.controller.trust.principals import Principal, Role, ShownCertificate
from secgroups.controller.trust.tokens import new_token
from secgroups.v1 import agent_service_pb2 as agents
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

NOW_US = 1_800_000_000_000_000
YEAR_US = 365 * 24 * 3600 * 1_000_000


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """An empty database with all tables."""
    path = tmp_path / "secgroups.db"
    SqliteStore(path).close()
    return path


@asynccontextmanager
async def opened(database: Path, revoked: Callable[[str], None] = lambda _: None) -> AsyncIterator[Credentials]:
    """Open what a database keeps, with the core that keeps it, and close both."""
    core = Core(SqliteStore(database))
    made = Credentials(core, lambda: NOW_US, revoked)
    yield made
    await made.close()
    await core.close()


@pytest.fixture
async def credentials(database: Path) -> AsyncIterator[Credentials]:
    async with opened(database) as made:
        yield made


def token(role: Role = Role.ADMIN, expires_us: int | None = None) -> tuple[Token, str]:
    token_id, text, kept = new_token()
    made = Token(id=token_id, name="t", role=role, project="", created_us=NOW_US, expires_us=expires_us, hash=kept)
    return made, text


def issued(serial: str) -> Issued:
    return Issued(certificate_pem=b"", serial=serial, issued_us=NOW_US, expires_us=NOW_US + YEAR_US)


def shown(agent_id: str, serial: str, begins_us: int = NOW_US) -> ShownCertificate:
    return ShownCertificate(agent_id=agent_id, serial=serial, begins_us=begins_us, expires_us=begins_us + YEAR_US)


def known(credentials: Credentials, certificate: ShownCertificate) -> Principal:
    found = credentials.find_agent(certificate)
    assert found is not None
    return found


def subscribe(channel: grpc.Channel, agent_id: str) -> Iterator[agents.SubscribeResponse]:
    hello = agents.SubscribeRequest(hello=agents.Hello(agent_id=agent_id, boot_id="b", version="1"))
    return AgentServiceStub(channel).Subscribe(_said(hello), timeout=TIMEOUT_S)


def _said(hello: agents.SubscribeRequest) -> Iterator[agents.SubscribeRequest]:
    """Say hello and leave the stream open for a while."""
    yield hello
    threading.Event().wait(TIMEOUT_S / 2)


def code_of(answers: Iterator[object]) -> str:
    """Return with what a stream ends."""
    try:
        for _ in answers:
            pass
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


async def test_an_agent_that_is_revoked_while_it_renews_gets_nothing(credentials: Credentials) -> None:
    await credentials.add_certificate("a", issued("1"))
    agent = known(credentials, shown("a", "1"))
    revoked = asyncio.create_task(credentials.revoke_agent("a"))
    await asyncio.sleep(0)
    with pytest.raises(UnauthenticatedError):
        # The gate has let it in already.
        await credentials.add_certificate("a", issued("2"), agent)
    assert await revoked == 1
    assert credentials.find_agent(shown("a", "1")) is None


async def test_an_admin_that_is_revoked_while_it_makes_a_token_or_enrols_an_agent_gets_neither(credentials: Credentials) -> None:
    admin, text = token()
    other, other_text = token()
    await credentials.add_token(admin)
    principal = credentials.find_token(text)
    revoked = asyncio.create_task(credentials.revoke_token(admin.id))
    await asyncio.sleep(0)
    with pytest.raises(UnauthenticatedError):
        await credentials.add_token(other, principal)
    with pytest.raises(UnauthenticatedError):
        await credentials.add_certificate("a", issued("1"), principal)
    await revoked
    assert credentials.find_token(text) is credentials.find_token(other_text) is None


@pytest.mark.parametrize("what", ["token", "agent"])
async def test_who_revokes_and_does_not_wait_has_revoked_all_the_same(database: Path, what: str) -> None:
    """What is on disk and what counts are the same, though the call is cancelled in the middle of the writing."""
    ended: list[str] = []
    made, text = token()
    async with opened(database, ended.append) as credentials:
        await credentials.add_token(made)
        await credentials.add_certificate("a", issued("1"))
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            # The writing has begun and can't go on.
            other.execute("BEGIN IMMEDIATE")
            change = credentials.revoke_token(made.id) if what == "token" else credentials.revoke_agent("a")
            call = asyncio.create_task(change)
            while not credentials._writing.locked():
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            other.execute("ROLLBACK")
    assert ended == [made.id if what == "token" else "agent/a"]
    assert (credentials.find_token(text) is None) == (what == "token")
    assert (credentials.find_agent(shown("a", "1")) is None) == (what == "agent")
    async with opened(database) as again:
        assert (again.find_token(text) is None) == (what == "token")
        assert (again.find_agent(shown("a", "1")) is None) == (what == "agent")


async def test_who_floods_the_controller_with_changes_does_not_keep_an_admin_from_revoking(database: Path) -> None:
    core = Core(SqliteStore(database))
    credentials = Credentials(core, lambda: NOW_US, lambda _: None)
    made, text = token(Role.EDITOR)
    await credentials.add_token(made)
    go_on = threading.Event()
    flood = [asyncio.create_task(core.change(lambda _: go_on.wait(TIMEOUT_S)))]
    flood += [asyncio.create_task(core.change(lambda _: None)) for _ in range(WAITING_MAX - 1)]
    while core.waiting < WAITING_MAX:
        await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="changes are waiting"):
        await core.change(lambda _: None)
    revoked = asyncio.create_task(credentials.revoke_token(made.id))
    while core.waiting == WAITING_MAX:
        await asyncio.sleep(0)
    go_on.set()
    await revoked
    assert credentials.find_token(text) is None
    await asyncio.gather(*flood)
    await core.close()


async def test_a_certificate_that_is_not_known_is_revoked_by_when_it_begins(credentials: Credentials) -> None:
    earlier, later, of_another = shown("a", "1", NOW_US - 1), shown("a", "2", NOW_US + 1), shown("b", "3", NOW_US - 1)
    assert all(credentials.find_agent(each) for each in (earlier, later, of_another))
    assert await credentials.revoke_agent("a") == 0
    assert [credentials.find_agent(each) is not None for each in (earlier, later, of_another)] == [False, True, True]


async def test_revocations_and_certificates_count_after_a_restart(database: Path) -> None:
    earlier, later, of_another = shown("a", "1", NOW_US - 1), shown("a", "2", NOW_US + 1), shown("b", "3", NOW_US - 1)
    async with opened(database) as credentials:
        await credentials.revoke_agent("a")
    async with opened(database) as again:
        assert [again.find_agent(each) is not None for each in (earlier, later, of_another)] == [False, True, True]
        # One that is known counts by itself: it is dated back a little, for clocks that are behind.
        await again.add_certificate("a", issued("9"))
        assert again.find_agent(shown("a", "9", NOW_US - 300_000_000)) is not None


async def test_an_agent_that_renews_again_and_again_takes_no_more_than_its_share(credentials: Credentials) -> None:
    await credentials.add_certificate("a", issued("first"))
    agent = known(credentials, shown("a", "first"))
    for number in range(1, CERTIFICATES_PER_AGENT_MAX):
        await credentials.add_certificate("a", issued(f"a{number}"), agent)
    with pytest.raises(LimitError, match="revoke it and enroll it again"):
        await credentials.add_certificate("a", issued("more"), agent)
    # Another agent has a share of its own, and whoever enrolls agents is no agent.
    await credentials.add_certificate("b", issued("b"))
    await credentials.add_certificate("b", issued("b2"), known(credentials, shown("b", "b")))
    await credentials.add_certificate("a", issued("by an admin"))
    assert await credentials.revoke_agent("a") == CERTIFICATES_PER_AGENT_MAX + 1
    await credentials.add_certificate("a", issued("again"))
    await credentials.add_certificate("a", issued("renewed"), known(credentials, shown("a", "again")))


@pytest.mark.parametrize("set_to_us", [NOW_US + 3600 * 1_000_000, NOW_US + YEAR_US])
async def test_a_stream_ends_when_its_time_has_come_by_a_clock_that_was_set(set_to_us: int) -> None:
    now_us = NOW_US
    sessions = Sessions(10, lambda: now_us, look_every_s=0.005)
    holder = Principal(key="k", role=Role.VIEWER, project="p", expires_us=NOW_US + 3600 * 1_000_000)

    async def hold(principal: Principal) -> None:
        with sessions.of(principal):
            await asyncio.Event().wait()

    held = asyncio.create_task(hold(holder))
    staying = asyncio.create_task(hold(Principal(key="other", role=Role.VIEWER, project="p")))
    # It is looked at several times, and nothing ends before its time.
    done, _ = await asyncio.wait([held], timeout=0.05)
    assert not done
    now_us = set_to_us
    with pytest.raises(UnauthenticatedError):
        await asyncio.wait_for(held, TIMEOUT_S)
    assert not staying.done()
    staying.cancel()


async def test_what_has_expired_between_its_beginning_and_its_stream_is_ended() -> None:
    sessions = Sessions(10, lambda: NOW_US)
    with pytest.raises(UnauthenticatedError), sessions.of(Principal(key="k", expires_us=NOW_US)):
        await asyncio.wait_for(asyncio.Event().wait(), TIMEOUT_S)


def test_an_agent_that_has_its_share_is_refused_before_its_request_is_read(site: Site) -> None:
    """So that asking again and again costs it more than the controller."""
    with site.enroll("insatiable") as channel:
        trust = TrustServiceStub(channel)
        request = pb.EnrollAgentRequest(agent_id="insatiable", csr_pem=key_and_csr()[1])
        for _ in range(CERTIFICATES_PER_AGENT_MAX - 1):
            trust.EnrollAgent(request, timeout=TIMEOUT_S)
        for csr in (request.csr_pem, "no request at all"):
            with pytest.raises(grpc.RpcError) as refused:
                trust.EnrollAgent(pb.EnrollAgentRequest(agent_id="insatiable", csr_pem=csr), timeout=TIMEOUT_S)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    site.enroll("insatiable").close()


def test_a_revoked_agent_stays_out_though_a_backup_has_forgotten_its_certificate(site: Site, tmp_path: Path) -> None:
    issued_before(site, "restored", tmp_path / "tls", begun_days_ago=10, ends_in_days=300)
    with site.show(tmp_path / "tls") as channel:
        answers = subscribe(channel, "restored")
        assert next(answers).WhichOneof("message") == "welcome"
        site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="restored"), timeout=TIMEOUT_S)
        assert code_of(answers) == "UNAUTHENTICATED"
        assert code_of(subscribe(channel, "restored")) == "UNAUTHENTICATED"
        request = pb.EnrollAgentRequest(agent_id="restored", csr_pem=key_and_csr()[1])
        with pytest.raises(grpc.RpcError) as refused:
            TrustServiceStub(channel).EnrollAgent(request, timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with site.enroll("restored") as channel:
        assert next(subscribe(channel, "restored")).WhichOneof("message") == "welcome"


def test_a_stream_ends_with_its_certificate_though_a_backup_has_forgotten_that(site: Site, tmp_path: Path) -> None:
    issued_before(site, "ending", tmp_path / "tls", begun_days_ago=300, ends_in_days=3 / 86_400)
    with site.show(tmp_path / "tls") as channel:
        answers = subscribe(channel, "ending")
        assert next(answers).WhichOneof("message") == "welcome"
        assert code_of(answers) == "UNAUTHENTICATED"


@pytest.mark.parametrize("agent_id", ["hôte-1", "a b", "100%", "%41", "名前", "x" * 128, "a?b#c", "*"])
def test_every_agent_id_that_there_can_be_subscribes_as_itself_alone(site: Site, agent_id: str) -> None:
    with site.enroll(agent_id) as channel:
        assert TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).agent_id == agent_id
        assert next(subscribe(channel, agent_id)).WhichOneof("message") == "welcome"
        assert code_of(subscribe(channel, "A")) == "PERMISSION_DENIED"
