"""Changes of a running controller for measurements, and an agent that takes in what it is sent without enforcing it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import grpc

from secgroups.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    group_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    types_pb2,
)
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

PROJECT = "project-000"
AGENT = "measured"
FLAGS = ("--groups-per-project", "1000")
TIMEOUT_S = 30.0
_SUBSCRIBE = "/secgroups.v1.AgentService/Subscribe"

Run = Callable[[int], Awaitable[None]]


class Watcher:
    """One agent's stream: acknowledges at once and notes how large the messages are."""

    def __init__(self, address: str, agent_id: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._agent_id = agent_id
        self._in_step = asyncio.Event()
        self._sizes: asyncio.Queue[int] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.snapshot: list[agent_service_pb2.Update] = []

    async def begin(self) -> None:
        """Return when the snapshot has come."""
        self._task = asyncio.create_task(self._follow())
        async with asyncio.timeout(TIMEOUT_S):
            await self._in_step.wait()

    async def sizes(self, count: int) -> list[int]:
        """Return the bytes of the next ``count`` updates after the snapshot, as protobuf, without the frame around them."""
        async with asyncio.timeout(TIMEOUT_S):
            return [await self._sizes.get() for _ in range(count)]

    async def close(self) -> None:
        """End the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def _follow(self) -> None:
        call = self._channel.stream_stream(_SUBSCRIBE, agent_service_pb2.SubscribeRequest.SerializeToString)()
        boot_id = str(uuid.uuid4())
        hello = agent_service_pb2.Hello(agent_id=self._agent_id, boot_id=boot_id)
        hello.boot_time.FromNanoseconds(time.time_ns())
        await call.write(agent_service_pb2.SubscribeRequest(hello=hello))
        while isinstance(data := await call.read(), bytes):
            message = agent_service_pb2.SubscribeResponse.FromString(data)
            ack = self._take(message, len(data))
            if ack is not None:
                await call.write(agent_service_pb2.SubscribeRequest(ack=ack))

    def _take(self, message: agent_service_pb2.SubscribeResponse, size_bytes: int) -> agent_service_pb2.Ack | None:
        """Return what is to be said of a message, if anything."""
        match message.WhichOneof("message"):
            case "sync_point":
                point = message.sync_point
                self._in_step.set()
                return agent_service_pb2.Ack(nonce=point.nonce, applied_revision=point.revision)
            case "bookmark":
                return agent_service_pb2.Ack(applied_revision=message.bookmark.revision)
            case "update" if self._in_step.is_set():
                self._sizes.put_nowait(size_bytes)
                return agent_service_pb2.Ack(nonce=message.update.nonce, applied_revision=message.update.revision)
            case "update":
                self.snapshot.append(message.update)
        return None


class Driver:
    """A client that makes one change after another.

    ``begin`` makes two groups, a server of an agent of its own in the first, whose rules name the second; the changes by kind then
    touch this agent and no other.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._attachments = AttachmentServiceStub(self._channel)
        self._groups = GroupServiceStub(self._channel)
        self._rules = RuleServiceStub(self._channel)
        self._rulesets = RulesetServiceStub(self._channel)
        self._servers = ServerServiceStub(self._channel)
        self._watcher = Watcher(address, AGENT)
        self._group_ids: list[str] = []

    async def begin(self) -> None:
        """Make what the changes need."""
        for name in ("measured", "measured-remote"):
            made = await self._groups.CreateGroup(group_service_pb2.CreateGroupRequest(project=PROJECT, name=name))
            self._group_ids.append(made.group.id)
        await self._rules.CreateRule(self._rule(1, group_id=self._group_ids[1]))
        for server_id, agent_id, address in (("measured", AGENT, "10.255.0.1"), ("joining", "", "10.255.0.2")):
            await self._servers.CreateServer(
                server_service_pb2.CreateServerRequest(
                    project=PROJECT,
                    id=server_id,
                    addresses=[address],
                    agent_id=agent_id,
                    group_ids=self._group_ids[:1] if agent_id else [],
                )
            )
        await self._watcher.begin()

    async def close(self) -> None:
        """Let go of the controller."""
        await self._watcher.close()
        await self._channel.close()

    def kinds(self) -> dict[str, Run]:
        """Return what can be measured, by name, each to be asked for a number of changes."""
        return {
            "rule_change": self._change_rules,
            "member_change": self._change_members,
            "attach": self._attach,
            "list": self._list,
        }

    def _rule(self, port: int, *, group_id: str = "") -> rule_service_pb2.CreateRuleRequest:
        spec = types_pb2.RuleSpec(direction=types_pb2.DIRECTION_INGRESS, protocol=types_pb2.PROTOCOL_TCP, ports={"first": port})
        if group_id:
            spec.group_id = group_id
        else:
            spec.cidr = "203.0.113.0/24"
        return rule_service_pb2.CreateRuleRequest(project=PROJECT, group_id=self._group_ids[0], rule=spec)

    async def _change_rules(self, count: int) -> None:
        for number in range(count // 2):
            made = await self._rules.CreateRule(self._rule(1 + number % 60_000))
            await self._rules.DeleteRule(rule_service_pb2.DeleteRuleRequest(project=PROJECT, id=made.rule.id))

    async def _change_members(self, count: int) -> None:
        for number in range(count):
            await self._toggle(PROJECT, "joining", self._group_ids[1], number)

    async def _attach(self, count: int) -> None:
        for number in range(count):
            await self._toggle(PROJECT, "measured", self._group_ids[1], number)

    async def _list(self, count: int) -> None:
        for _ in range(count):
            await self._servers.ListServers(server_service_pb2.ListServersRequest(project=PROJECT, page_size=10))

    async def join_and_leave(self, project: str, server_id: str, group: str, count: int) -> list[float]:
        """Attach and detach a server by turns, ``count`` changes in all, each once the one before is in force on every agent.

        Return how many milliseconds it took each from the commit to being in force everywhere.
        """
        found = await self._groups.ListGroups(group_service_pb2.ListGroupsRequest(project=project, name=group))
        taken_ms = []
        for number in range(count):
            wanted = ruleset_service_pb2.WaitForRevisionRequest(
                revision=await self._toggle(project, server_id, found.groups[0].id, number)
            )
            wanted.timeout.FromSeconds(int(TIMEOUT_S))
            answer = await self._rulesets.WaitForRevision(wanted)
            if not answer.in_force:
                raise SystemExit(f"revision {wanted.revision} is not in force on {len(answer.lagging)} agents")
            taken_ms.append(answer.commit_to_in_force.ToMicroseconds() / 1e3)
        return taken_ms

    async def _toggle(self, project: str, server_id: str, group_id: str, number: int) -> int:
        """Attach a server at even numbers, detach it at odd ones; return the revision."""
        if number % 2:
            request = attachment_service_pb2.DetachGroupRequest(project=project, server_id=server_id, group_id=group_id)
            return (await self._attachments.DetachGroup(request)).revision
        return (
            await self._attachments.AttachGroup(
                attachment_service_pb2.AttachGroupRequest(project=project, server_id=server_id, group_id=group_id)
            )
        ).revision
