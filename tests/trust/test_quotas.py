"""How much one caller may ask for: calls within a second, streams at one time; others are not held up by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from trusted_site import TIMEOUT_S, Site, bearer

from secgroups.controller.errors import OverloadError
from secgroups.controller.trust.gate import STREAMS_PER_AGENT_MAX
from secgroups.controller.trust.office import CALLS_PER_S_OF_AGENT
from secgroups.controller.trust.quotas import SWEEP_MIN, CallRates
from secgroups.v1 import agent_service_pb2 as agents
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

CALLS_PER_S = 40
STREAMS = 3
SECOND_NS = 1_000_000_000


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SECGROUPS_CONTROLLER_CALLS_PER_S", str(CALLS_PER_S))
        environment.setenv("SECGROUPS_CONTROLLER_STREAMS_PER_PRINCIPAL", str(STREAMS))
        made = Site(tmp_path_factory.mktemp("narrow"))
    yield made
    made.stop()
    assert "rpc_crashed" not in made.controller.log_file.read_text()


def detail(error: grpc.RpcError, kind: type) -> object:
    """Return the one detail of a kind."""
    (found,) = [packed for packed in rpc_status.from_call(error).details if packed.Is(kind.DESCRIPTOR)]
    message = kind()
    found.Unpack(message)
    return message


def taken(rates: CallRates, key: str, times: int) -> int:
    """Return how many of so many calls there was room for."""
    count = 0
    for _ in range(times):
        try:
            rates.take(key)
        except OverloadError:
            continue
        count += 1
    return count


def test_a_second_has_room_for_its_calls_and_an_idle_caller_saves_up_no_more() -> None:
    now_ns = 0
    rates = CallRates(10, lambda: now_ns)
    assert taken(rates, "a", 15) == 10
    now_ns += SECOND_NS // 2
    assert taken(rates, "a", 15) == 5
    now_ns += 3600 * SECOND_NS
    assert taken(rates, "a", 15) == 10
    assert taken(rates, "b", 15) == 10


def test_who_is_refused_is_told_when_there_is_room_and_there_is_then_and_not_before() -> None:
    now_ns = 0
    rates = CallRates(4, lambda: now_ns)
    assert taken(rates, "a", 4) == 4
    with pytest.raises(OverloadError) as refused:
        rates.take("a")
    assert refused.value.retry_after_s == 0.25
    now_ns = 249_000_000
    assert taken(rates, "a", 1) == 0
    now_ns = 250_000_000
    assert taken(rates, "a", 2) == 1


def test_callers_who_have_gone_are_forgotten() -> None:
    now_ns = 0
    rates = CallRates(10, lambda: now_ns)
    for number in range(20 * SWEEP_MIN):
        now_ns += SECOND_NS // SWEEP_MIN
        rates.take(f"token {number}")
    assert len(rates) <= 2 * SWEEP_MIN


def test_a_token_that_calls_too_often_is_told_when_to_try_again_and_another_is_let_in(narrow: Site) -> None:
    _, eager = narrow.token(pb.ROLE_VIEWER, "p")
    _, other = narrow.token(pb.ROLE_VIEWER, "p")
    with narrow.tls() as channel:
        who = TrustServiceStub(channel).WhoAmI
        pending = [who.future(pb.WhoAmIRequest(), metadata=bearer(eager), timeout=TIMEOUT_S) for _ in range(20 * CALLS_PER_S)]
        refused = [error for each in pending if (error := each.exception()) is not None]
        assert refused
        assert len(pending) - len(refused) >= CALLS_PER_S
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert str(CALLS_PER_S) in error.details()
            assert 0 < detail(error, details.RetryInfo).retry_delay.ToNanoseconds() <= SECOND_NS
            assert detail(error, details.ErrorInfo).metadata["limit"] == "calls_per_s"
        assert who(pb.WhoAmIRequest(), metadata=bearer(other), timeout=TIMEOUT_S).token.name == "test"


def test_what_a_role_does_not_allow_counts_as_well(narrow: Site) -> None:
    _, viewer = narrow.token(pb.ROLE_VIEWER, "p")
    with narrow.tls() as channel:
        call = TrustServiceStub(channel).ListTokens
        pending = [call.future(pb.ListTokensRequest(), metadata=bearer(viewer), timeout=TIMEOUT_S) for _ in range(20 * CALLS_PER_S)]
        assert {each.exception().code().name for each in pending} == {"PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}


def test_an_agent_has_a_rate_of_its_own_and_what_it_asks_too_often_holds_up_no_other(narrow: Site) -> None:
    with narrow.enroll("eager") as channel, narrow.enroll("modest") as other:
        who = TrustServiceStub(channel).WhoAmI
        pending = [who.future(pb.WhoAmIRequest(), timeout=TIMEOUT_S) for _ in range(20 * CALLS_PER_S_OF_AGENT)]
        refused = [error for each in pending if (error := each.exception()) is not None]
        assert refused
        # More than with a token here.
        assert len(pending) - len(refused) >= CALLS_PER_S_OF_AGENT > CALLS_PER_S
        for error in refused:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert 0 < detail(error, details.RetryInfo).retry_delay.ToNanoseconds() <= SECOND_NS
        assert TrustServiceStub(other).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).agent_id == "modest"


def test_so_many_streams_of_one_token_and_no_more_until_one_has_ended(narrow: Site) -> None:
    request = servers.CreateServerRequest(project="p", id="s1", addresses=["10.0.0.1"])
    made = ServerServiceStub(narrow.channel).CreateServer(request, timeout=TIMEOUT_S)
    token_id, token = narrow.token(pb.ROLE_VIEWER, "p")
    _, other = narrow.token(pb.ROLE_VIEWER, "p")
    with narrow.tls() as channel:
        stub = RulesetServiceStub(channel)

        def watch(text: str) -> Iterator[rulesets.WatchEffectiveRulesetResponse]:
            wanted = rulesets.WatchEffectiveRulesetRequest(project="p", server_id="s1")
            return stub.WatchEffectiveRuleset(wanted, metadata=bearer(text), timeout=TIMEOUT_S)

        open_ = [watch(token) for _ in range(STREAMS)]
        for each in open_:
            next(each)
        with pytest.raises(grpc.RpcError) as refused:
            next(watch(token))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(refused.value, details.ErrorInfo).metadata["limit"] == "streams_per_principal"
        assert detail(refused.value, details.RetryInfo).retry_delay.seconds == 1
        # A wait for an answer holds as much as a stream does.
        wait = rulesets.WaitForRevisionRequest(revision=made.revision)
        with pytest.raises(grpc.RpcError) as refused:
            stub.WaitForRevision(wait, metadata=bearer(token), timeout=TIMEOUT_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        staying = watch(other)
        assert next(staying).ruleset.server.id == "s1"
        # Those that are ended make room: by whoever opened them, or because the token is revoked.
        narrow.trust.RevokeToken(pb.RevokeTokenRequest(id=token_id), timeout=TIMEOUT_S)
        for each in open_:
            with pytest.raises(grpc.RpcError) as ended:
                list(each)
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        staying.cancel()


def test_an_agent_has_few_streams_at_one_time_whatever_tokens_may(narrow: Site) -> None:
    with narrow.enroll("many") as channel:
        subscribe = AgentServiceStub(channel).Subscribe
        silent = [subscribe(_never(), timeout=TIMEOUT_S) for _ in range(STREAMS_PER_AGENT_MAX)]
        over = threading.Event()
        # Which of them is refused is open: they race.
        silent.append(subscribe(_never(), timeout=TIMEOUT_S))
        for each in silent:
            # It is not called for one that has ended already.
            if not each.add_callback(over.set):
                over.set()
        assert over.wait(TIMEOUT_S / 2)
        codes = {each.code() for each in silent if not each.is_active()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for each in silent:
            each.cancel()


def _never() -> Iterator[agents.SubscribeRequest]:
    """Say nothing until the call is over."""
    threading.Event().wait(TIMEOUT_S)
    yield from ()


def test_a_wait_ends_when_its_token_is_revoked(narrow: Site) -> None:
    request = servers.CreateServerRequest(project="w", id="s1", addresses=["10.0.0.1"], agent_id="never-comes")
    revision = ServerServiceStub(narrow.channel).CreateServer(request, timeout=TIMEOUT_S).revision
    token_id, token = narrow.token(pb.ROLE_VIEWER, "w")
    _, probe = narrow.token(pb.ROLE_VIEWER, "w")
    with narrow.tls() as channel:
        stub = RulesetServiceStub(channel)
        wait = rulesets.WaitForRevisionRequest(revision=revision, timeout={"seconds": 600})
        pending = stub.WaitForRevision.future(wait, metadata=bearer(token), timeout=TIMEOUT_S)
        # On the same connection, so that it arrived before.
        TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), metadata=bearer(probe), timeout=TIMEOUT_S)
        narrow.trust.RevokeToken(pb.RevokeTokenRequest(id=token_id), timeout=TIMEOUT_S)
        assert pending.exception().code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A controller that takes few calls in all, of which one caller gets half."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SECGROUPS_CONTROLLER_CALLS_MAX", "20")
        environment.setenv("SECGROUPS_CONTROLLER_CALLS_PER_S", "8")
        environment.setenv("SECGROUPS_CONTROLLER_STREAMS_PER_PRINCIPAL", "2")
        made = Site(tmp_path_factory.mktemp("small"))
    yield made
    made.stop()
    assert "rpc_crashed" not in made.controller.log_file.read_text()


def announce(channel: grpc.Channel, method: str, metadata: Sequence[tuple[str, str]] = ()) -> grpc.Future:
    """Begin a call whose message never comes."""
    made = channel.stream_unary(method, request_serializer=bytes, response_deserializer=bytes)
    return made.future(_never(), metadata=metadata, timeout=TIMEOUT_S)


@pytest.mark.parametrize("method", ["GroupService/CreateGroup", "RulesetService/WaitForRevision", "TrustService/WhoAmI"])
@pytest.mark.parametrize("metadata", [(), bearer("garbage")], ids=["no token", "garbage"])
def test_who_is_not_known_is_turned_away_before_there_is_a_message(
    small: Site, method: str, metadata: Sequence[tuple[str, str]]
) -> None:
    with small.tls() as channel:
        calls = [announce(channel, f"/secgroups.v1.{method}", metadata) for _ in range(60)]
        codes = {call.exception(TIMEOUT_S / 2).code().name for call in calls}
    # Many at once are more than the controller takes in all, but none of them stays.
    assert "UNAUTHENTICATED" in codes
    assert codes <= {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"}
    assert small.trust.WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).token.name == "operator"


def test_who_is_known_and_sends_no_messages_holds_its_own_share_and_no_more(small: Site) -> None:
    _, greedy = small.token(pb.ROLE_VIEWER, "p")
    with small.tls() as channel:
        refused = []
        calls = []
        # At a pace that its calls within a second allow: what it holds grows all the same.
        for _ in range(11):
            call = announce(channel, "/secgroups.v1.TrustService/WhoAmI", bearer(greedy))
            calls.append(call)
            while not refused and _rate_is_exhausted(call):
                calls[-1] = call = announce(channel, "/secgroups.v1.TrustService/WhoAmI", bearer(greedy))
        last = calls[-1].exception(TIMEOUT_S / 2)
        assert last.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(last, details.ErrorInfo).metadata["limit"] == "calls_at_one_time"
        assert small.trust.WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).token.name == "operator"
        for call in calls:
            call.cancel()


def _rate_is_exhausted(call: grpc.Future) -> bool:
    """Whether a call was refused because it came too soon; one that is held is not."""
    try:
        error = call.exception(0.3)
    except grpc.FutureTimeoutError:
        return False
    return detail(error, details.ErrorInfo).metadata["limit"] == "calls_per_s"


def test_a_message_of_an_agent_or_about_health_is_waited_for_only_so_long(small: Site) -> None:
    with small.enroll("slow") as agent, small.tls() as anybody:
        late = announce(agent, "/secgroups.v1.TrustService/WhoAmI"), announce(anybody, "/grpc.health.v1.Health/Check")
        for call in late:
            assert call.exception(TIMEOUT_S).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert TrustServiceStub(agent).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).agent_id == "slow"
        health = health_pb2_grpc.HealthStub(anybody)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == health_pb2.HealthCheckResponse.SERVING


def test_a_thousand_refusals_are_counted_and_told_once_a_second(small: Site) -> None:
    before = small.controller.log_file.read_text().count("call_turned_away")
    began_s = time.monotonic()
    with small.tls() as channel:
        for _ in range(20):
            calls = [announce(channel, "/secgroups.v1.TrustService/WhoAmI") for _ in range(15)]
            assert {call.exception(TIMEOUT_S).code().name for call in calls} == {"UNAUTHENTICATED"}
    told = small.controller.log_file.read_text().count("call_turned_away") - before
    assert told <= time.monotonic() - began_s + 1
