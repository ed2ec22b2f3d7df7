"""Streams end when their ground goes: a token or a certificate that is revoked, or expires. And agents are who they say."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import grpc
import pytest
from trusted_site import TIMEOUT_S, Site, bearer, key_and_csr

from secgroups.v1 import agent_service_pb2 as agents
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

PROJECT = "streams"


@pytest.fixture(scope="module")
def server(site: Site) -> None:
    request = servers.CreateServerRequest(project=PROJECT, id="s1", addresses=["10.0.0.1"])
    ServerServiceStub(site.channel).CreateServer(request, timeout=TIMEOUT_S)


def end_of(answers: Iterator[object]) -> grpc.RpcError:
    """Return with what a stream ends."""
    with pytest.raises(grpc.RpcError) as ended:
        for _ in answers:
            pass
    return ended.value


def watch(channel: grpc.Channel, token: str) -> Iterator[rulesets.WatchEffectiveRulesetResponse]:
    request = rulesets.WatchEffectiveRulesetRequest(project=PROJECT, server_id="s1")
    return RulesetServiceStub(channel).WatchEffectiveRuleset(request, metadata=bearer(token), timeout=TIMEOUT_S)


class Subscriber:
    """An agent's stream, spoken by hand."""

    def __init__(self, channel: grpc.Channel, agent_id: str) -> None:
        self._says: queue.SimpleQueue[agents.SubscribeRequest | None] = queue.SimpleQueue()
        hello = agents.Hello(agent_id=agent_id, boot_id="boot", version="1")
        self._says.put(agents.SubscribeRequest(hello=hello))
        self.answers = AgentServiceStub(channel).Subscribe(iter(self._says.get, None), timeout=TIMEOUT_S)

    def close(self) -> None:
        self._says.put(None)


@pytest.mark.usefixtures("server")
def test_a_watch_ends_when_its_token_is_revoked_and_no_other_does(site: Site) -> None:
    token_id, token = site.token(pb.ROLE_VIEWER, PROJECT)
    _, other = site.token(pb.ROLE_VIEWER, PROJECT)
    with site.tls() as channel, site.tls() as second:
        watching, staying = watch(channel, token), watch(second, other)
        assert next(watching).ruleset.server.id == next(staying).ruleset.server.id == "s1"
        site.trust.RevokeToken(pb.RevokeTokenRequest(id=token_id))
        assert end_of(watching).code() is grpc.StatusCode.UNAUTHENTICATED
        assert end_of(watch(channel, token)).code() is grpc.StatusCode.UNAUTHENTICATED
        request = servers.UpdateServerRequest(project=PROJECT, id="s1", addresses=["10.0.0.2"])
        request.update_mask.paths.append("addresses")
        ServerServiceStub(site.channel).UpdateServer(request, timeout=TIMEOUT_S)
        assert list(next(staying).ruleset.server.addresses) == ["10.0.0.2"]
        staying.cancel()


@pytest.mark.usefixtures("server")
def test_a_watch_ends_when_its_token_expires(site: Site) -> None:
    _, token = site.token(pb.ROLE_VIEWER, PROJECT, lifetime_s=1.5)
    with site.tls() as channel:
        watching = watch(channel, token)
        assert next(watching).ruleset.server.id == "s1"
        assert end_of(watching).code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_agent_is_cut_off_when_it_is_revoked_and_comes_back_enrolled_again(site: Site) -> None:
    with site.enroll("revoked") as channel, site.enroll("revoked") as second:
        subscriber = Subscriber(channel, "revoked")
        assert next(subscriber.answers).WhichOneof("message") == "welcome"
        assert site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="revoked")).certificates == 2
        assert end_of(subscriber.answers).code() is grpc.StatusCode.UNAUTHENTICATED
        for known in (channel, second):
            assert end_of(Subscriber(known, "revoked").answers).code() is grpc.StatusCode.UNAUTHENTICATED
    with site.enroll("revoked") as channel:
        subscriber = Subscriber(channel, "revoked")
        assert next(subscriber.answers).WhichOneof("message") == "welcome"
        subscriber.close()
    assert site.trust.RevokeAgent(pb.RevokeAgentRequest(agent_id="never-enrolled")).certificates == 0


def test_an_agent_subscribes_only_as_itself(site: Site) -> None:
    with site.enroll("one") as channel:
        ended = end_of(Subscriber(channel, "two").answers)
        assert (ended.code(), "agent one" in ended.details()) == (grpc.StatusCode.PERMISSION_DENIED, True)
    assert "two" not in {agent.id for agent in AgentServiceStub(site.channel).ListAgents(agents.ListAgentsRequest()).agents}


def test_an_agent_renews_its_own_certificate_and_gets_no_other(site: Site) -> None:
    _, csr = key_and_csr()
    with site.enroll("renewing") as channel:
        trust = TrustServiceStub(channel)
        assert trust.EnrollAgent(pb.EnrollAgentRequest(agent_id="renewing", csr_pem=csr), timeout=TIMEOUT_S).certificate_pem
        assert trust.WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).agent_id == "renewing"
        with pytest.raises(grpc.RpcError) as refused:
            trust.EnrollAgent(pb.EnrollAgentRequest(agent_id="other", csr_pem=csr), timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("name", pb.CreateTokenRequest(role=pb.ROLE_ADMIN)),
        ("name", pb.CreateTokenRequest(name="x" * 129, role=pb.ROLE_ADMIN)),
        ("name", pb.CreateTokenRequest(name="a\nb", role=pb.ROLE_ADMIN)),
        ("role", pb.CreateTokenRequest(name="n")),
        ("role", pb.CreateTokenRequest(name="n", role=9)),  # type: ignore[arg-type]
        ("project", pb.CreateTokenRequest(name="n", role=pb.ROLE_ADMIN, project="p")),
        ("project", pb.CreateTokenRequest(name="n", role=pb.ROLE_VIEWER)),
        ("lifetime", pb.CreateTokenRequest(name="n", role=pb.ROLE_ADMIN, lifetime={"nanos": 5})),
        ("lifetime", pb.CreateTokenRequest(name="n", role=pb.ROLE_ADMIN, lifetime={"seconds": 1 << 40})),
    ],
)
def test_a_token_that_can_not_be_is_refused_by_the_name_of_its_field(
    site: Site, field: str, request_: pb.CreateTokenRequest
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        site.trust.CreateToken(request_, timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(field)


@pytest.mark.parametrize(
    ("field", "agent_id", "csr"),
    [
        ("agent_id", "", key_and_csr()[1]),
        ("agent_id", "a/b", key_and_csr()[1]),
        ("csr_pem", "a", ""),
        ("csr_pem", "a", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        ("csr_pem", "a", "x" * (17 << 10)),
    ],
)
def test_an_enrolment_that_can_not_be_is_refused_by_the_name_of_its_field(site: Site, field: str, agent_id: str, csr: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        site.trust.EnrollAgent(pb.EnrollAgentRequest(agent_id=agent_id, csr_pem=csr), timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(field)


def test_a_project_learns_nothing_of_what_holds_up_a_revision_of_another(site: Site) -> None:
    """An agent that never comes holds up a revision of another project: who may not see it hears nothing of that."""
    stub, waits = ServerServiceStub(site.channel), RulesetServiceStub(site.channel)
    made = stub.CreateServer(
        servers.CreateServerRequest(project="secret", id="s", addresses=["10.0.0.9"], agent_id="hidden-agent"), timeout=TIMEOUT_S
    )
    request = rulesets.WaitForRevisionRequest(revision=made.revision, timeout={"nanos": 1})
    told = {}
    for project in ("secret", "curious"):
        _, token = site.token(pb.ROLE_EDITOR, project)
        with site.tls() as channel:
            answer = RulesetServiceStub(channel).WaitForRevision(request, metadata=bearer(token), timeout=TIMEOUT_S)
            told[project] = (answer.in_force, [lag.agent_id for lag in answer.lagging], answer.agents_touched)
    assert told == {"secret": (False, ["hidden-agent"], 1), "curious": (True, [], 0)}
    full = waits.WaitForRevision(request, timeout=TIMEOUT_S)
    assert "not connected" in full.lagging[0].reason


def test_many_who_come_and_go_leave_nothing_behind(site: Site) -> None:
    """Streams that end by themselves, and streams that are ended, side by side."""
    token_id, token = site.token(pb.ROLE_VIEWER, PROJECT)
    ended: list[grpc.StatusCode] = []

    def one(number: int) -> None:
        with site.tls() as channel:
            watching = watch(channel, token)
            next(watching)
            if number % 2:
                watching.cancel()  # type: ignore[attr-defined]
            ended.append(end_of(watching).code())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    while len(ended) < 6:
        threads[1].join(0.05)
    site.trust.RevokeToken(pb.RevokeTokenRequest(id=token_id))
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert sorted(code.name for code in ended) == ["CANCELLED"] * 6 + ["UNAUTHENTICATED"] * 6
