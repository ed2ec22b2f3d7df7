"""AgentService and WaitForRevision over a real socket: agents that are odd, silent or stopped harm themselves and nobody else."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from stream_world import allow

from secgroups.controller import operations as ops
from secgroups.controller.clocks import Clocks
from secgroups.controller.core import Core
from secgroups.controller.interceptors import ErrorsAndLog
from secgroups.controller.metrics import Counts
from secgroups.controller.services.agents import Agents, add_agents_to_server
from secgroups.controller.services.waiting import wait_for_revision
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.stream_messages import Hello, SyncPoint, Update, Welcome
from secgroups.controller.stream_settings import StreamSettings
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceServicer, RulesetServiceStub, add_RulesetServiceServicer_to_server

TIMEOUT_S = 10.0
# Nobody is sent away for being slow, however slow this machine is: for agents that say nothing of their own accord.
PATIENT = StreamSettings(heartbeat_s=TIMEOUT_S, hello_timeout_s=TIMEOUT_S)
# Silence ends a stream soon, for tests of just that; agents that must stay have to speak up in time.
IMPATIENT = StreamSettings(heartbeat_s=0.25, hello_timeout_s=0.5)
impatient = pytest.mark.parametrize("site", [IMPATIENT], indirect=True, ids=["impatient"])


class Waiting(RulesetServiceServicer):
    """The one call of RulesetService that is about agents."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def WaitForRevision(  # noqa: N802
        self, request: rulesets.WaitForRevisionRequest, context: object
    ) -> rulesets.WaitForRevisionResponse:
        return await wait_for_revision(self._core, request)


class Site:
    """A controller that serves, and a channel to it. Its time of day is ``clock_ahead_ns`` ahead of this machine's."""

    clock_ahead_ns = 0

    def __init__(self, core: Core, address: str, channel: grpc.aio.Channel) -> None:
        self.core = core
        self.address = address
        self.agents = AgentServiceStub(channel)
        self.rulesets = RulesetServiceStub(channel)

    async def server(self, server_id: str, agent_id: str, last_octet: int) -> int:
        """Make a server; return the revision."""
        outcome = await self.core.change(
            lambda tx: ops.create_server(
                tx,
                project="p",
                server_id=server_id,
                addresses=[ip_address(f"10.0.0.{last_octet}")],
                agent_id=agent_id,
            )
        )
        return outcome.revision

    async def wait(self, revision: int, timeout_s: float = TIMEOUT_S) -> rulesets.WaitForRevisionResponse:
        request = rulesets.WaitForRevisionRequest(revision=revision)
        request.timeout.FromNanoseconds(round(timeout_s * 1e9))
        return await self.rulesets.WaitForRevision(request)


@pytest.fixture
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """Serve, patiently unless a test says otherwise."""
    core = Core(SqliteStore(tmp_path / "secgroups.db", durable=False))
    settings = getattr(request, "param", PATIENT)
    server = grpc.aio.server(interceptors=[ErrorsAndLog(Counts())])
    clocks = Clocks(time_of_day_ns=lambda: time.time_ns() + made.clock_ahead_ns)
    add_agents_to_server(Agents(core, settings, clocks), server)
    add_RulesetServiceServicer_to_server(Waiting(core), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Site(core, f"127.0.0.1:{port}", channel)
        yield made
    await server.stop(0)
    await core.close()


class Client:
    """An agent that says what a test wants it to say."""

    def __init__(self, site: Site) -> None:
        self.call = site.agents.Subscribe(timeout=TIMEOUT_S)

    async def say(self, **message: object) -> None:
        await self.call.write(pb.SubscribeRequest(**message))

    async def hear(self) -> pb.SubscribeResponse:
        message = await self.call.read()
        assert isinstance(message, pb.SubscribeResponse), f"the stream ended: {await self.call.code()}"
        return message

    async def greet(self, agent_id: str = "a", **more: object) -> pb.SyncPoint:
        """Say hello, take the snapshot, acknowledge it; return its sync point."""
        await self.say(hello=pb.Hello(agent_id=agent_id, boot_id="boot", **more))
        while (message := await self.hear()).WhichOneof("message") != "sync_point":
            pass
        await self.ack(message.sync_point)
        return message.sync_point

    async def ack(self, message: pb.SyncPoint | pb.Update) -> None:
        await self.say(ack=pb.Ack(nonce=message.nonce, applied_revision=message.revision))

    async def live(self) -> None:
        """Acknowledge everything until cancelled."""
        while True:
            message = await self.hear()
            match message.WhichOneof("message"):
                case "update":
                    await self.ack(message.update)
                case "sync_point":
                    await self.ack(message.sync_point)
                case "bookmark":
                    await self.say(ack=pb.Ack(applied_revision=message.bookmark.revision))

    async def ending(self) -> tuple[grpc.StatusCode, str]:
        """Take all that comes until the end; return the status, or OK and the reason of the GoAway."""
        reason = ""
        try:
            while isinstance(message := await self.call.read(), pb.SubscribeResponse):
                reason = message.go_away.reason or reason
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return await self.call.code(), reason or await self.call.details() or ""


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.005)


async def living(site: Site, agent_id: str) -> asyncio.Task[None]:
    """Return the task of an agent that is in step and stays so."""
    client = Client(site)
    await client.greet(agent_id)
    return asyncio.create_task(client.live())


HELLO = pb.Hello(agent_id="a", boot_id="b")
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN_KIND = pb.ObjectVersion(kind=99)


def hello(**fields: object) -> pb.SubscribeRequest:
    return pb.SubscribeRequest(hello=pb.Hello(**{"agent_id": "a", "boot_id": "b", **fields}))


def ack(**fields: object) -> pb.SubscribeRequest:
    return pb.SubscribeRequest(ack=pb.Ack(**fields))


def said_at_length(size_bytes: int) -> pb.SubscribeRequest:
    """Return what says nothing that is asked for, in so many bytes."""
    return pb.SubscribeRequest(preview_result=pb.PreviewResult(message="x" * size_bytes))


@pytest.mark.parametrize(
    ("reason", "messages"),
    [
        ("hello: must be the first", [ack(nonce=1)]),
        ("hello: must be the first", [pb.SubscribeRequest()]),
        ("hello.agent_id: must not be empty", [hello(agent_id="")]),
        ("hello.agent_id: has 129 characters", [hello(agent_id="a" * 129)]),
        ("hello.agent_id: must not contain a slash", [hello(agent_id="a/b")]),
        ("hello.boot_id: must not be empty", [hello(boot_id="")]),
        ("hello.boot_id: has 200 characters", [hello(boot_id="b" * 200)]),
        ("hello.host: has 300 characters", [hello(host="h" * 300)]),
        ("hello.held[0].kind: is 99", [hello(held=[UNKNOWN_KIND])]),
        ("hello.held: has 200001 objects", [hello(held=[pb.ObjectVersion(kind=1)] * 200_001)]),
        ("hello: stands only at the beginning", [hello(), hello()]),
        ("ack.nonce: is 77", [hello(), ack(nonce=77)]),
        ("ack.applied_revision: is 1000000", [hello(), ack(applied_revision=1_000_000)]),
        ("ack.rejected[0].object.kind: is 99", [hello(), ack(rejected=[pb.RejectedObject(object=UNKNOWN_KIND)])]),
    ],
)
async def test_an_odd_agent_is_sent_away_and_harms_nobody(site: Site, reason: str, messages: list[pb.SubscribeRequest]) -> None:
    await is_sent_away(site, INVALID, reason, messages)


async def test_of_what_was_said_on_a_stream_nothing_is_kept_while_it_lasts(site: Site) -> None:
    def kept() -> list[object]:
        """Return what both sides said: a hello counts for what it lists, else the record of an agent is one."""
        said = (pb.SubscribeRequest, Welcome, Update, SyncPoint)
        return [each for each in gc.get_objects() if isinstance(each, said) or (isinstance(each, Hello) and each.held)]

    gc.collect()
    before = kept()
    revision = await site.server("s1", "a", 1)
    client = Client(site)
    await client.greet(held=[pb.ObjectVersion(kind=pb.OBJECT_KIND_GROUP, key=f"g{number}", version=1) for number in range(100)])
    # Whatever it holds was told, taken in and acknowledged.
    assert (await site.wait(revision)).in_force
    gc.collect()
    assert [each for each in kept() if not any(each is earlier for earlier in before)] == []
    client.call.cancel()


@impatient
@pytest.mark.parametrize(("reason", "messages"), [("no hello came", []), ("nothing was acknowledged", [hello()])])
async def test_a_silent_agent_is_sent_away_and_harms_nobody(site: Site, reason: str, messages: list[pb.SubscribeRequest]) -> None:
    await is_sent_away(site, grpc.StatusCode.OK, reason, messages)


async def is_sent_away(site: Site, expected: grpc.StatusCode, reason: str, messages: list[pb.SubscribeRequest]) -> None:
    other = await living(site, "other")
    client = Client(site)
    for message in messages:
        await client.call.write(message)
    code, told = await client.ending()
    assert (code, told[: len(reason)]) == (expected, reason)
    assert (await site.wait(await site.server("s1", "other", 1))).in_force
    other.cancel()


async def test_what_this_controller_does_not_know_is_ignored(site: Site) -> None:
    client = Client(site)
    await client.greet("a", applied_revision=10**9, store_epoch="of another store", window=pb.Window(messages=1))
    await client.say()
    task = asyncio.create_task(client.live())
    assert (await site.wait(await site.server("s1", "a", 1))).in_force
    task.cancel()


@pytest.mark.parametrize(
    "message", [pb.SubscribeRequest(report=pb.Report(flows=1)), said_at_length(3 << 20)], ids=["many", "large"]
)
async def test_an_agent_that_floods_is_sent_away_and_harms_nobody(site: Site, message: pb.SubscribeRequest) -> None:
    other = await living(site, "other")
    client = Client(site)
    await client.greet("a")

    async def flood() -> None:
        # A stream that has ended takes no more.
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            while True:
                await client.call.write(message)

    flooding = asyncio.create_task(flood())
    while (heard := await client.hear()).WhichOneof("message") != "go_away":
        pass
    assert heard.go_away.reason == "it said more than 2,000 messages or 8 MiB in a second"
    assert heard.go_away.reconnect_after.seconds > 0
    await flooding
    assert (await site.wait(await site.server("s2", "other", 2))).in_force
    other.cancel()


async def test_bytes_that_are_no_message_are_refused(site: Site) -> None:
    async with grpc.aio.insecure_channel(site.address) as channel:
        call = channel.stream_stream("/secgroups.v1.AgentService/Subscribe")(timeout=TIMEOUT_S)
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is INVALID
    assert raised.value.details() == "message: is no SubscribeRequest"


@impatient
async def test_an_agent_that_reports_but_acknowledges_nothing_is_sent_away(site: Site) -> None:
    await site.server("s1", "a", 1)
    client = Client(site)
    await client.say(hello=HELLO)

    async def report() -> None:
        while True:
            await client.say(report=pb.Report(flows=3, verdicts={"REASON_NEW": 1, "nonsense": 2}))
            await asyncio.sleep(IMPATIENT.heartbeat_s / 2)

    reporting = asyncio.create_task(report())
    while (heard := await client.hear()).WhichOneof("message") != "go_away":
        pass
    # What is written while the stream ends may have gRPC's client call the end an error.
    reporting.cancel()
    assert heard.go_away.reason.startswith("nothing was acknowledged for")
    assert (await client.ending())[0] is grpc.StatusCode.OK
    # The agent hears of the end before the controller has noted it.
    while (agent := (await site.agents.GetAgent(pb.GetAgentRequest(id="a"))).agent).connected:
        await asyncio.sleep(0.005)
    assert dict(agent.report.verdicts) == {"REASON_NEW": 1}
    assert (agent.connected, agent.pending_revisions) == (False, 1)


async def test_an_agents_clock_is_compared_with_the_controllers_when_it_reports(site: Site) -> None:
    await site.server("s1", "a", 1)
    client = Client(site)
    await client.say(hello=HELLO)
    await client.say(report=pb.Report(flows=1))
    silent = await reported(site, flows=1)
    assert not silent.HasField("clock_ahead")
    ahead = pb.Report(flows=2)
    ahead.time.FromNanoseconds(time.time_ns() + 3_600 * 10**9)
    await client.say(report=ahead)
    assert 3_590 < (await reported(site, flows=2)).clock_ahead.ToSeconds() <= 3_600
    client.call.cancel()


async def reported(site: Site, flows: int) -> pb.Agent:
    """Return what is known of agent a once its report with so many flows has come."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            agent = (await site.agents.GetAgent(pb.GetAgentRequest(id="a"))).agent
            if agent.report.flows == flows:
                return agent
            await asyncio.sleep(0.005)


@impatient
async def test_an_agent_that_takes_nothing_is_given_up_and_its_stream_freed(site: Site) -> None:
    """Its snapshot is larger than what gRPC takes for an agent that does not read."""
    for number in range(1, 300):
        addresses = [ip_address(f"2001:db8:{number:x}::{octet:x}") for octet in range(1, 33)]
        await site.core.change(
            lambda tx, number=number, addresses=addresses: ops.create_server(
                tx, project="p", server_id=f"s{number}", addresses=addresses, agent_id="a"
            )
        )
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
    async with grpc.aio.insecure_channel(site.address, options=options) as channel:
        call = AgentServiceStub(channel).Subscribe(timeout=TIMEOUT_S)
        await call.write(pb.SubscribeRequest(hello=HELLO))
        async with asyncio.timeout(TIMEOUT_S):
            while (status := site.core.publisher.find_status("a")) is None or not status.connected:
                await asyncio.sleep(0.01)
            while site.core.publisher.find_status("a").connected:
                await asyncio.sleep(0.01)
        heard = []
        while isinstance(message := await call.read(), pb.SubscribeResponse):
            heard.append(message.WhichOneof("message"))
        assert heard == ["welcome", "update", "go_away"]
        assert message is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


@impatient
async def test_bookmarks_come_each_heartbeat(site: Site) -> None:
    client = Client(site)
    point = await client.greet()
    for _ in range(3):
        message = await client.hear()
        assert message.bookmark.revision == point.revision
        await client.say(ack=pb.Ack(applied_revision=message.bookmark.revision))
    client.call.cancel()


async def test_of_two_starts_the_earlier_one_is_told_to_go(site: Site) -> None:
    first, second = Client(site), Client(site)
    await first.greet(host="old-host")
    hello = pb.Hello(agent_id="a", boot_id="later", host="new-host")
    hello.boot_time.GetCurrentTime()
    await second.say(hello=hello)
    code, reason = await first.ending()
    assert code is grpc.StatusCode.OK
    assert "later on new-host" in reason
    assert (await second.hear()).HasField("welcome")
    third = Client(site)
    await third.say(hello=HELLO)
    assert "was started later" in (await third.ending())[1]
    second.call.cancel()


async def test_waiting_ends_with_the_last_acknowledgement(site: Site) -> None:
    first = await living(site, "a")
    second = Client(site)
    await second.greet("b")
    await site.server("s1", "a", 1)
    await site.server("s2", "b", 2)
    group = site.core.state.group_by_name("p", "default")
    rule = await site.core.change(lambda tx: ops.create_rules(tx, project="p", group_id=group.id, specs=[allow(80)], bulk=False))
    now = await site.wait(rule.revision, 0)
    (second_lag,) = [lag for lag in now.lagging if lag.agent_id == "b"]
    assert second_lag.reason.startswith("not acknowledged yet (2 changes in all); wait longer")
    waiting = asyncio.create_task(site.wait(rule.revision))
    second_task = asyncio.create_task(second.live())
    answer = await waiting
    assert (answer.in_force, answer.agents_touched, len(answer.lagging)) == (True, 2, 0)
    assert answer.HasField("commit_to_in_force")
    for task in (first, second_task):
        task.cancel()


async def test_waiting_names_who_lags_at_the_time_out(site: Site) -> None:
    client = Client(site)
    await client.greet("a")
    await site.server("s1", "ghost", 1)
    revision = await site.server("s2", "a", 2)
    await site.server("s3", "elsewhere", 3)
    answer = await site.wait(revision, 0.05)
    assert not answer.in_force
    assert [(lag.agent_id, lag.connected, lag.reason.partition("; ")[0]) for lag in answer.lagging] == [
        ("a", True, "not acknowledged yet (2 changes in all)"),
        ("ghost", False, "not connected (never since the controller started)"),
    ]
    client.call.cancel()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("revision", lambda request: setattr(request, "revision", 10**6)),
        ("timeout", lambda request: request.timeout.FromSeconds(3601)),
        ("timeout", lambda request: request.timeout.FromSeconds(-1)),
    ],
)
async def test_waiting_for_what_can_not_be_is_refused(
    site: Site, field: str, change: Callable[[rulesets.WaitForRevisionRequest], None]
) -> None:
    request = rulesets.WaitForRevisionRequest()
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.rulesets.WaitForRevision(request)
    assert caught.value.code() is INVALID
    assert caught.value.details().startswith(f"{field}:")


async def test_an_agent_that_has_nothing_to_be_told_of_a_change_was_heard_just_now(site: Site) -> None:
    """What moves away stays with it until it has arrived, so the move sends it nothing."""
    await site.server("s1", "a", 1)
    living_agent = await living(site, "a")
    await site.core.change(lambda tx: ops.update_server(tx, project="p", server_id="s1", agent_id="elsewhere"))
    heard_us = []
    for _ in range(30):
        heard_us.append(site.core.publisher.find_status("a").last_heard_us)
        await asyncio.sleep(0.001)
    assert heard_us == sorted(heard_us)
    assert time.time() - heard_us[0] / 1e6 < TIMEOUT_S
    living_agent.cancel()


@impatient
@pytest.mark.parametrize("years", [-1, 1])
async def test_a_clock_that_is_set_closes_no_stream_and_makes_nobody_stale(site: Site, years: int) -> None:
    await site.server("s1", "a", 1)
    living_agent = await living(site, "a")
    site.clock_ahead_ns = years * 365 * 86_400 * 10**9
    connected_since = (await site.agents.GetAgent(pb.GetAgentRequest(id="a"))).agent.connected_since
    heard_us = site.core.publisher.find_status("a").heard_clock_us
    # At a heartbeat, when who is silent is closed.
    await until(lambda: site.core.publisher.find_status("a").heard_clock_us > heard_us)
    told = (await site.agents.GetAgent(pb.GetAgentRequest(id="a"))).agent
    assert (told.connected, told.connected_since) == (True, connected_since)
    assert told.staleness.ToSeconds() < TIMEOUT_S
    assert (await site.wait(await site.server("s2", "a", 2))).in_force
    living_agent.cancel()
    await until(lambda: not site.core.publisher.find_status("a").connected)
    # Whether the clock is put right or not: it grows stale by what has passed.
    for clock_ahead_ns in (site.clock_ahead_ns, 0):
        site.clock_ahead_ns = clock_ahead_ns
        told = (await site.agents.GetAgent(pb.GetAgentRequest(id="a"))).agent
        assert told.staleness.ToMicroseconds() > 0
        assert told.staleness.ToSeconds() < TIMEOUT_S


async def test_agents_are_listed_in_pages(site: Site) -> None:
    for number in range(1, 6):
        await site.server(f"s{number}", f"agent-{number}", number)
    seen, token = [], ""
    for _ in range(10):
        page = await site.agents.ListAgents(pb.ListAgentsRequest(page_size=2, page_token=token))
        seen.append([agent.id for agent in page.agents])
        token = page.next_page_token
        if not token:
            break
    assert seen == [["agent-1", "agent-2"], ["agent-3", "agent-4"], ["agent-5"]]
    agent = (await site.agents.GetAgent(pb.GetAgentRequest(id="agent-3"))).agent
    assert (agent.connected, agent.boot_id, agent.server_count, agent.pending_revisions) == (False, "", 1, 3)
    assert not agent.HasField("staleness")
    for request, code in ((pb.GetAgentRequest(id="nobody"), grpc.StatusCode.NOT_FOUND), (pb.GetAgentRequest(), INVALID)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.agents.GetAgent(request)
        assert caught.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.agents.ListAgents(pb.ListAgentsRequest(page_token="?"))
    assert caught.value.code() is INVALID
