"""The agent's end of the stream against controllers that end it at bad moments, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind
from secgroups.agent.removal_limit import RemovalLimit
from secgroups.agent.replica import Replica
from secgroups.agent.subscription import Identity, Subscription
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server

HEARTBEAT_MS = 10
TIMEOUT_S = 10.0

Context = grpc.aio.ServicerContext[pb.SubscribeRequest, pb.SubscribeResponse]
Script = Callable[[Context], Awaitable[None]]


class ScriptedController(AgentServiceServicer):
    """Serves streams as ``scripts`` say, one after the other; ``done`` when the agent comes for one more. ``hellos`` began them."""

    def __init__(self, scripts: Iterable[Script]) -> None:
        self._scripts = iter(scripts)
        self.done = asyncio.Event()
        self.hellos: list[pb.Hello] = []

    async def Subscribe(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        self.hellos.append((await context.read()).hello)
        script = next(self._scripts, None)
        if script is None:
            self.done.set()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no more")
            return
        await script(context)


class Site:
    """A scripted controller and the agent that subscribes to it; ``saved`` are the revisions that were to be saved."""

    def __init__(self, controller: ScriptedController, address: str, reconnect_s: float, max_removal: float) -> None:
        firewall = Firewall(now_ns=0)
        self.replica = Replica(firewall, RemovalLimit(max_removal))
        self.hellos = controller.hellos
        self.saved: list[int] = []
        self._controller = controller
        self._subscription = Subscription(
            address,
            Identity(agent_id="a", boot_id="boot", boot_time_ns=1, version="1"),
            firewall,
            self.replica,
            applied=lambda: self.saved.append(self.replica.revision),
            reconnect_min_s=reconnect_s,
            reconnect_max_s=reconnect_s,
        )

    async def run(self, turns: int = 0) -> None:
        """Be subscribed until all scripts are through and the loop has made some ``turns`` more."""
        running = asyncio.create_task(self._subscription.run())
        running.add_done_callback(lambda _: self._controller.done.set())
        async with asyncio.timeout(TIMEOUT_S):
            await self._controller.done.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not running.done(), running.exception()
        running.cancel()
        assert await asyncio.wait([running], timeout=TIMEOUT_S) == ({running}, set())


@asynccontextmanager
async def site(*scripts: Script, reconnect_s: float = 0.001, max_removal: float = 1.0) -> AsyncIterator[Site]:
    server = grpc.aio.server()
    controller = ScriptedController(scripts)
    add_AgentServiceServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Site(controller, f"127.0.0.1:{port}", reconnect_s, max_removal)
    finally:
        await server.stop(0)


async def give_snapshot(context: Context, revision: int, *groups: str, servers: Iterable[str] = ()) -> None:
    """Welcome the agent and give it groups without rules and servers without groups."""
    welcome = pb.Welcome(store_epoch="epoch", revision=revision, mode=pb.SYNC_MODE_SNAPSHOT)
    welcome.heartbeat.FromMilliseconds(HEARTBEAT_MS)
    await context.write(pb.SubscribeResponse(welcome=welcome))
    update = pb.Update(nonce=1, revision=revision, more=True, groups=[pb.GroupRules(group_id=g, version=revision) for g in groups])
    update.servers.extend(pb.ServerBinding(server=server, version=revision) for server in servers)
    held = HeldVersions({(Kind.GROUP, g): revision for g in groups} | {(Kind.SERVER, server): revision for server in servers})
    point = pb.SyncPoint(nonce=2, revision=revision, state_digest=held.digest, snapshot_end=True)
    await context.write(pb.SubscribeResponse(update=update))
    await context.write(pb.SubscribeResponse(sync_point=point))


def snapshot(revision: int, *groups: str, servers: Iterable[str] = ()) -> Script:
    """Give a snapshot, and wait until it is acknowledged."""

    async def script(context: Context) -> None:
        await give_snapshot(context, revision, *groups, servers=servers)
        while not (await context.read()).ack.nonce:
            pass

    return script


def too_little(revision: int, *servers: str) -> Script:
    """Give a snapshot of which the agent wants to hear no more."""

    async def script(context: Context) -> None:
        await give_snapshot(context, revision, servers=servers)
        while (said := await context.read()) is not grpc.aio.EOF:
            assert not said.ack.nonce

    return script


def cut_off(revision: int, delay_s: float) -> Script:
    """Give a snapshot after a while, and be gone with the last word of it."""

    async def script(context: Context) -> None:
        await asyncio.sleep(delay_s)
        await give_snapshot(context, revision, "g")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    return script


def lost_while_reporting(number: int) -> Script:
    """End the stream with a message that comes about when the agent sends its report."""

    async def script(context: Context) -> None:
        welcome = pb.Welcome(store_epoch="epoch", revision=1, mode=pb.SYNC_MODE_SNAPSHOT)
        welcome.heartbeat.FromMilliseconds(HEARTBEAT_MS)
        await context.write(pb.SubscribeResponse(welcome=welcome))
        await asyncio.sleep((HEARTBEAT_MS + number % 20 / 10 - 0.5) / 1000)
        point = pb.SyncPoint(nonce=1, revision=1, state_digest=HeldVersions().digest, snapshot_end=True)
        await context.write(pb.SubscribeResponse(sync_point=point))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    return script


def go_away(reconnect_after_s: float) -> Script:
    async def script(context: Context) -> None:
        gone = pb.GoAway(reason="stopping")
        gone.reconnect_after.FromNanoseconds(round(reconnect_after_s * 1e9))
        await context.write(pb.SubscribeResponse(go_away=gone))

    return script


async def test_a_stream_that_ends_while_the_agent_speaks_is_opened_again() -> None:
    async with site(*map(lost_while_reporting, range(100))) as agent:
        await agent.run()


async def test_an_agent_that_is_stopped_while_its_stream_ends_stops() -> None:
    for turns in range(48):
        async with site() as agent:
            await agent.run(turns % 12)


async def test_what_is_in_force_is_saved_even_if_it_can_not_be_acknowledged() -> None:
    for revision in range(1, 30):
        async with site(cut_off(revision, 0)) as agent:
            await agent.run()
            in_force = agent.replica.revision
            assert agent.saved == ([in_force] if in_force else [])


@pytest.mark.parametrize(
    ("saved", "first", "second"),
    [
        ([1, 2], ["g"], ["g"]),
        ([1, 2], ["g"], ["h"]),
        ([1, 2], ["g"], []),  # All that was held is gone.
        ([2], [], ["g"]),
        ([], [], []),  # Nothing came and nothing went.
    ],
)
async def test_a_snapshot_that_brings_or_takes_something_is_saved(saved: list[int], first: list[str], second: list[str]) -> None:
    async with site(snapshot(1, *first), snapshot(2, *second)) as agent:
        await agent.run()
        assert (agent.saved, sorted(agent.replica.ruleset.groups)) == (saved, second)


async def test_agents_that_are_sent_away_together_do_not_come_back_together() -> None:
    asked_s = 0.01
    with capture_logs() as lines:
        async with site(*[go_away(asked_s)] * 8, reconnect_s=asked_s) as agent:
            await agent.run()
    waits = [line["retry_s"] for line in lines if line["reason"] == "it said: stopping"]
    assert len(waits) == 8
    assert min(waits) >= asked_s
    assert len(set(waits)) > 1


async def test_a_snapshot_that_is_held_back_is_said_once_for_each_case_and_in_every_hello_until_the_agent_is_in_sync() -> None:
    scripts = [
        snapshot(1, servers=["p/a", "p/b"]),
        too_little(2),
        too_little(3),  # The controller goes on counting, and is no better.
        too_little(4, "p/c"),
        snapshot(5, servers=["p/a"]),  # Half of them may go.
    ]
    with capture_logs() as lines:
        async with site(*scripts, max_removal=0.5) as agent:
            await agent.run()
            told = [(h.held_back.revision, h.held_back.servers_removed, h.held_back.servers_held) for h in agent.hellos]
            assert told == [(0, 0, 0), (0, 0, 0), (2, 2, 2), (3, 2, 2), (4, 2, 2), (0, 0, 0)]
            assert [hello.applied_revision for hello in agent.hellos] == [0, 1, 1, 1, 1, 5]
            assert agent.saved == [1, 5]
    said = [(line["event"], line["revision"]) for line in lines if "held_back" in line["event"]]
    assert said == [("snapshot_held_back", 2), ("snapshot_no_longer_held_back", 5)]
    lost = [line["reason"] for line in lines if line["event"] == "controller_lost"]
    assert "its snapshot at revision 3 would remove 2 of 2 servers, more than the share of 0.5 that max_removal allows" in lost


async def test_a_hello_that_no_controller_would_take_names_nothing_and_leads_to_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.agent.subscription.HELLO_BYTES_MAX", 300)
    many = [f"p/server-{number}" for number in range(20)]
    async with site(snapshot(1, servers=many[:2]), snapshot(2, servers=many), snapshot(3, servers=many)) as agent:
        await agent.run()
        assert [(hello.store_epoch, len(hello.held)) for hello in agent.hellos] == [("", 0), ("epoch", 2), ("", 0), ("", 0)]
        assert agent.replica.revision == 3
        assert len(agent.replica.ruleset.servers) == 20


def committed_at(seconds: int, nanos: int) -> Script:
    """Give a snapshot, and then an update whose oldest commit was at this time; wait until it is acknowledged and reported."""

    async def script(context: Context) -> None:
        await snapshot(1, "g")(context)
        update = pb.Update(nonce=3, revision=2, groups=[pb.GroupRules(group_id="h", version=2)])
        update.oldest_commit_time.seconds, update.oldest_commit_time.nanos = seconds, nanos
        await context.write(pb.SubscribeResponse(update=update))
        while (await context.read()).ack.nonce != 3:
            pass
        while not (await context.read()).HasField("report"):
            pass

    return script


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 62, 0), (-(1 << 62), 0), (1, -5), (1, 2_000_000_000), (253_402_300_800, 0)])
async def test_a_commit_time_that_is_none_costs_a_figure_and_neither_the_update_nor_the_agent(seconds: int, nanos: int) -> None:
    async with site(committed_at(seconds, nanos), snapshot(3, "g")) as agent:
        await agent.run()
    assert agent.saved == [1, 2, 3]
