"""Previews over real sockets to agents that answer late, oddly or not at all: the wait is bounded, and nobody else is held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from stream_world import ops

from secgroups.controller.core import Core
from secgroups.controller.interceptors import ErrorsAndLog
from secgroups.controller.limits import Limits
from secgroups.controller.metrics import Counts
from secgroups.controller.preview import FlowsCut
from secgroups.controller.questions import QUESTIONS_MAX
from secgroups.controller.services.agents import Agents, add_agents_to_server
from secgroups.controller.services.servers import ServerService
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.stream_settings import StreamSettings
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub, add_ServerServiceServicer_to_server

PREVIEW_TIMEOUT_S = 0.3
PATIENCE_S = 10.0


class Site:
    """A controller that serves agents and servers, and a channel to it."""

    def __init__(self, core: Core, channel: grpc.aio.Channel) -> None:
        self.core = core
        self.agents = AgentServiceStub(channel)
        self.servers = ServerServiceStub(channel)

    async def server(self, server_id: str, agent_id: str, last_octet: int) -> None:
        """Make a server in a group of its own: those of the default group would lose a member with each other."""
        addresses = [ip_address(f"10.0.0.{last_octet}")]
        made = (await self.core.change(lambda tx: ops.create_group(tx, project="p", name=f"of {server_id}"))).value
        assert made is not None
        values = {"addresses": addresses, "agent_id": agent_id, "group_ids": [made.id]}
        await self.core.change(lambda tx: ops.create_server(tx, project="p", server_id=server_id, **values))

    async def would_delete(self, server_id: str) -> FlowsCut:
        outcome = await self.core.change(lambda tx: ops.delete_server(tx, project="p", server_id=server_id), validate_only=True)
        assert outcome.preview is not None
        assert outcome.preview.flows_cut is not None
        return outcome.preview.flows_cut


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    core = Core(SqliteStore(tmp_path / "secgroups.db", durable=False), preview_timeout_s=PREVIEW_TIMEOUT_S)
    server = grpc.aio.server(interceptors=[ErrorsAndLog(Counts())])
    add_agents_to_server(Agents(core, StreamSettings(heartbeat_s=5)), server)
    add_ServerServiceServicer_to_server(ServerService(core, Limits()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Site(core, channel)
        for number, agent_id in enumerate(("a", "b"), start=1):
            await made.server(f"s{number}", agent_id, number)
        yield made
    await server.stop(0)
    await core.close()


class OddAgent:
    """An agent that takes part in the stream as any other, and answers previews only when a test says so."""

    def __init__(self, site: Site, agent_id: str) -> None:
        self._call = site.agents.Subscribe(timeout=60)
        self._agent_id = agent_id
        self.asked: asyncio.Queue[pb.PreviewRequest] = asyncio.Queue()

    async def start(self) -> OddAgent:
        await self.say(hello=pb.Hello(agent_id=self._agent_id, boot_id="boot"))
        while (message := await self._call.read()).WhichOneof("message") != "sync_point":
            pass
        await self.say(ack=pb.Ack(nonce=message.sync_point.nonce, applied_revision=message.sync_point.revision))
        self._task = asyncio.create_task(self._live())
        return self

    async def say(self, **message: object) -> None:
        await self._call.write(pb.SubscribeRequest(**message))

    async def _live(self) -> None:
        while isinstance(message := await self._call.read(), pb.SubscribeResponse):
            match message.WhichOneof("message"):
                case "update":
                    await self.say(ack=pb.Ack(nonce=message.update.nonce, applied_revision=message.update.revision))
                case "preview_request":
                    self.asked.put_nowait(message.preview_request)

    async def next_question(self) -> pb.PreviewRequest:
        async with asyncio.timeout(PATIENCE_S):
            return await self.asked.get()

    async def answer(self, question: pb.PreviewRequest, flows_cut: int = 0, **more: object) -> None:
        await self.say(preview_result=pb.PreviewResult(id=question.id, flows_cut=flows_cut, **more))

    async def end(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_an_agent_that_never_answers_is_waited_for_once_and_named(site: Site) -> None:
    odd = await OddAgent(site, "a").start()
    began = time.monotonic()
    cut = await site.would_delete("s1")
    assert PREVIEW_TIMEOUT_S * 0.9 < time.monotonic() - began < PATIENCE_S
    assert cut == FlowsCut(flows=0, agents_counted=0, uncounted={"a": "no answer within 0.3 s"})
    cut = await site.would_delete("s1")
    assert cut.uncounted == {"a": "left the last preview unanswered"}
    # The stream is as good as before, and a late answer is as good as any sign that it will answer.
    question = await odd.next_question()
    assert question.timeout.ToMilliseconds() == 300
    await odd.answer(question, 7)
    while site.core.publisher.find_channel("a").questions.obstacle:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(site.would_delete("s1"))
    await odd.answer(await odd.next_question(), 2)
    assert await waiting == FlowsCut(flows=2, agents_counted=1, uncounted={})


async def test_what_it_is_asked_is_the_change_and_the_answers_are_told_apart(site: Site) -> None:
    odd = await OddAgent(site, "a").start()
    await site.server("s3", "a", 3)
    tasks = [asyncio.create_task(site.would_delete(server_id)) for server_id in ("s1", "s3")]
    questions = [await odd.next_question() for _ in tasks]
    assert sorted(question.update.removed_servers[0] for question in questions) == ["p/s1", "p/s3"]
    flows = {"p/s1": 10, "p/s3": 30}
    for question in reversed(questions):
        await odd.answer(question, flows[question.update.removed_servers[0]])
    assert [(await task).flows for task in tasks] == [10, 30]


async def test_a_reason_is_passed_on_and_nonsense_goes_nowhere(site: Site) -> None:
    odd = await OddAgent(site, "a").start()
    task = asyncio.create_task(site.would_delete("s1"))
    question = await odd.next_question()
    await odd.say(preview_result=pb.PreviewResult(id=0, flows_cut=1))
    await odd.say(preview_result=pb.PreviewResult(id=999, flows_cut=1))
    await odd.answer(question, 5, code=8, message="too many")
    await odd.answer(question, 6)
    assert await task == FlowsCut(flows=0, agents_counted=0, uncounted={"a": "too many"})
    task = asyncio.create_task(site.would_delete("s1"))
    await odd.answer(await odd.next_question(), code=13)
    assert (await task).uncounted == {"a": "code 13"}
    # More flows than there can be end the stream, and with it the wait.
    task = asyncio.create_task(site.would_delete("s1"))
    await odd.answer(await odd.next_question(), 1 << 60)
    assert (await task).uncounted == {"a": "it lost its connection"}


async def test_an_agent_that_is_away_is_named_at_once_and_one_that_goes_ends_the_wait(site: Site) -> None:
    began = time.monotonic()
    assert (await site.would_delete("s1")).uncounted == {"a": "not connected"}
    odd = await OddAgent(site, "a").start()
    task = asyncio.create_task(site.would_delete("s1"))
    await odd.next_question()
    await odd.end()
    assert (await task).uncounted == {"a": "it lost its connection"}
    assert time.monotonic() - began < PATIENCE_S


async def test_a_stream_carries_few_questions_and_takes_back_those_of_calls_that_are_cancelled(site: Site) -> None:
    odd = await OddAgent(site, "a").start()
    request = servers.DeleteServerRequest(project="p", id="s1", validate_only=True)
    calls = [site.servers.DeleteServer(request) for _ in range(QUESTIONS_MAX)]
    for _ in calls:
        await odd.next_question()
    answer = await site.servers.DeleteServer(request)
    assert [each.agent_id for each in answer.preview.flows_cut.uncounted] == ["a"]
    assert "previews are under way" in answer.preview.flows_cut.uncounted[0].reason
    for call in calls:
        call.cancel()
    questions = site.core.publisher.find_channel("a").questions
    async with asyncio.timeout(PATIENCE_S):
        while questions.obstacle:
            await asyncio.sleep(0.01)
    # They were cancelled and not overdue: the agent is trusted to answer.
    again = site.servers.DeleteServer(request)
    await odd.answer(await odd.next_question(), 4)
    assert (await again).preview.flows_cut.flows == 4


async def test_changes_and_other_previews_go_on_while_one_waits(site: Site) -> None:
    await OddAgent(site, "a").start()
    other = await OddAgent(site, "b").start()
    waiting = asyncio.create_task(site.would_delete("s1"))
    task = asyncio.create_task(site.would_delete("s2"))
    await other.answer(await other.next_question(), 1)
    assert (await task).flows == 1
    await site.server("s4", "b", 4)
    assert not waiting.done()
    assert (await waiting).uncounted == {"a": "no answer within 0.3 s"}
