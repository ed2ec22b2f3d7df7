"""The agent's end of the stream, with a controller at the other end that leaves when and how it likes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest

from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind
from secgroups.agent.replica import Replica
from secgroups.agent.subscription import Call, Identity, Subscription, connecting
from secgroups.agent.transport import open_plaintext
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server

# Short, so that reports and acknowledgements meet often.
HEARTBEAT_MS = 10
# The initial window of HTTP/2 (RFC 9113, section 6.9.2).
WINDOW_BYTES = 65_535
STREAMS = 200
AGENTS = 8


class Controller(AgentServiceServicer):
    """Says what ``talk`` makes up, once for each stream, and sets ``enough`` at the last of ``streams_max``."""

    def __init__(
        self,
        talk: Callable[[grpc.aio.ServicerContext, int], AsyncIterator[pb.SubscribeResponse]],
        streams_max: int,
        heartbeat_ms: int = HEARTBEAT_MS,
    ) -> None:
        self.talk = talk
        self.heartbeat_ms = heartbeat_ms
        self.streams = 0
        self.streams_max = streams_max
        self.enough = asyncio.Event()

    async def Subscribe(self, requests, context):  # noqa: N802
        self.streams += 1
        if self.streams >= self.streams_max:
            self.enough.set()
        welcome = pb.Welcome(controller_id="c", store_epoch="e", mode=pb.SYNC_MODE_SNAPSHOT)
        welcome.heartbeat.FromMilliseconds(self.heartbeat_ms)
        yield pb.SubscribeResponse(welcome=welcome)
        async for message in self.talk(context, self.streams):
            yield message


def snapshot(revision: int, *rules: pb.PolicyRule) -> list[pb.SubscribeResponse]:
    """Return a snapshot of one group at ``revision``."""
    group = pb.GroupRules(group_id="g", version=revision, name="g", rules=rules)
    update = pb.Update(nonce=1, revision=revision, groups=[group])
    digest = HeldVersions({(Kind.GROUP, "g"): revision}).digest
    end = pb.SyncPoint(nonce=2, revision=revision, state_digest=digest, snapshot_end=True)
    return [pb.SubscribeResponse(update=update), pb.SubscribeResponse(sync_point=end)]


class Agent:
    """An agent that is subscribed; ``noted`` are the revisions that it was told to save, ``call`` its latest stream."""

    def __init__(self, address: str, enforce: Callable[[Agent], Awaitable[None]] | None) -> None:
        self.noted: list[int] = []
        self.call: Call | None = None
        self.firewall = Firewall(now_ns=0)
        self.replica = Replica(self.firewall)
        subscription = Subscription(
            address,
            Identity(agent_id="a", boot_id="b", boot_time_ns=0, version=""),
            self.firewall,
            self.replica,
            applied=lambda: self.noted.append(self.replica.revision),
            enforce=None if enforce is None else partial(enforce, self),
            connect=self._connect,
            reconnect_min_s=0.001,
            reconnect_max_s=0.002,
        )
        self.running = asyncio.create_task(subscription.run())

    @asynccontextmanager
    async def _connect(self, controller: str) -> AsyncIterator[Call]:
        async with connecting(open_plaintext)(controller) as self.call:
            yield self.call


@asynccontextmanager
async def subscribed(
    controller: Controller,
    *options: tuple[str, int],
    agents_count: int = AGENTS,
    enforce: Callable[[Agent], Awaitable[None]] | None = None,
) -> AsyncIterator[list[Agent]]:
    server = grpc.aio.server(options=options)
    add_AgentServiceServicer_to_server(controller, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    agents = [Agent(f"127.0.0.1:{port}", enforce) for _ in range(agents_count)]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.running.cancel()
        await asyncio.gather(*(agent.running for agent in agents), return_exceptions=True)
        await server.stop(None)


async def until_enough(controller: Controller, agents: list[Agent]) -> None:
    """Wait until the controller has seen enough streams, or an agent has given up."""
    enough = asyncio.create_task(controller.enough.wait())
    await asyncio.wait([enough, *(agent.running for agent in agents)], return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert [agent.running for agent in agents if agent.running.done()] == []
    assert enough.done()


@pytest.mark.parametrize("aborts", [False, True])
async def test_a_stream_may_end_at_any_moment_and_the_agent_subscribes_again(aborts):
    chance = random.Random(1)

    async def talk(context, number):
        for message in snapshot(number):
            yield message
        for _ in range(chance.randrange(200)):
            yield pb.SubscribeResponse(bookmark=pb.Bookmark(revision=number))
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() / 500)
        if aborts:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    controller = Controller(talk, STREAMS)
    async with subscribed(controller) as agents:
        await until_enough(controller, agents)


async def test_a_controller_that_talks_and_does_not_listen_is_left_and_asked_again():
    chance = random.Random(2)

    async def talk(context, number):
        # The rejection of this nearly fills what may be written to somebody who does not read: soon nothing goes any more.
        strange = pb.PolicyRule(id="r" * chance.randrange(WINDOW_BYTES - 400, WINDOW_BYTES - 100))
        for message in snapshot(number, strange):
            yield message
        while True:
            yield pb.SubscribeResponse(bookmark=pb.Bookmark(revision=number))
            await asyncio.sleep(HEARTBEAT_MS / 500)

    controller = Controller(talk, 10 * AGENTS)
    async with subscribed(controller, ("grpc.http2.lookahead_bytes", WINDOW_BYTES), ("grpc.http2.bdp_probe", 0)) as agents:
        await until_enough(controller, agents)


async def test_what_is_in_force_is_saved_though_it_could_not_be_acknowledged():
    is_in_force = asyncio.Event()

    async def talk(context, number):
        is_in_force.clear()
        for message in snapshot(number):
            yield message
        # Not before: gRPC drops what the agent has not read when it hears of the end.
        await is_in_force.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def enforce_until_the_stream_has_ended(agent):
        is_in_force.set()
        assert await agent.call.code() is grpc.StatusCode.UNAVAILABLE

    controller = Controller(talk, 20, heartbeat_ms=60_000)
    async with subscribed(controller, agents_count=1, enforce=enforce_until_the_stream_has_ended) as (agent,):
        await until_enough(controller, [agent])
        assert agent.noted[:19] == [*range(1, 20)]
        assert agent.noted[-1] == agent.firewall.ruleset.revision


def strange_message() -> pb.SubscribeResponse:
    """Return something that only a newer controller says: field 99 of the oneof."""
    return pb.SubscribeResponse.FromString(b"\x9a\x06\x00")


@pytest.mark.parametrize("aborts", [False, True])
async def test_previews_and_what_it_does_not_know_never_end_the_agent(aborts):
    chance = random.Random(3)

    async def talk(context, number):
        for message in snapshot(number):
            yield message
        for preview_id in range(1, chance.randrange(2, 60)):
            yield strange_message()
            update = pb.Update(groups=[pb.GroupRules(group_id="g", version=number + 1)])
            yield pb.SubscribeResponse(preview_request=pb.PreviewRequest(id=preview_id, update=update))
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() / 500)
        if aborts:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    controller = Controller(talk, STREAMS)
    async with subscribed(controller) as agents:
        await until_enough(controller, agents)
        assert all(agent.firewall.ruleset.groups["g"].version == agent.firewall.ruleset.revision for agent in agents)


async def test_many_previews_to_a_controller_that_does_not_listen_end_the_stream_and_not_the_agent():
    async def talk(context, number):
        for message in snapshot(number):
            yield message
        preview_id = 0
        while True:
            preview_id += 1
            # Refused for a reason that is long: answers fill what may be written to somebody who does not read.
            update = pb.Update(groups=[pb.GroupRules(group_id="g", rules=[pb.PolicyRule(id="r" * 4_000)])])
            yield pb.SubscribeResponse(preview_request=pb.PreviewRequest(id=preview_id, update=update))
            await asyncio.sleep(0.0005)

    controller = Controller(talk, 2 * AGENTS)
    async with subscribed(controller, ("grpc.http2.lookahead_bytes", WINDOW_BYTES), ("grpc.http2.bdp_probe", 0)) as agents:
        await until_enough(controller, agents)
