"""Many simulated agents in one process: real sockets, one connection each, true to the protocol, without an engine.

An agent takes every message as the product's does: it checks nonces, base versions and digests, keeps the versions of what it
holds, applies a step when it is whole and acknowledges it. It says in its hello what it holds, and comes back by itself. A line of
JSON on standard input is a command, a line on standard output its answer; see ``Fleet``.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
import uuid
from typing import Any

import grpc

from secgroups.controller.digest import HeldVersions
from secgroups.controller.stream_messages import Kind
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub

# Without its own pool a process shares one connection among all channels to an address.
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20))
# As the product's agent: full jitter, doubling.
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.5, 30.0
# Streams that are opened at one time when a fleet connects for the first time.
OPENING_MAX = 100


class BrokenStreamError(Exception):
    """The controller said what does not fit."""


class Agent:
    """One agent."""

    def __init__(self, agent_id: str, address: str, fleet: Fleet) -> None:
        self.agent_id = agent_id
        self.synced = False
        self.revision = 0
        self.mode = 0
        self.objects_received = 0
        self._address = address
        self._fleet = fleet
        self._boot_id = str(uuid.uuid4())
        self._boot_ns = time.time_ns()
        self._store_epoch = self._timeline_id = ""
        self._held = HeldVersions()

    async def run(self) -> None:
        attempts = 0
        while True:
            self.synced = False
            try:
                async with grpc.aio.insecure_channel(self._address, options=OPTIONS) as channel:
                    await self._hold(AgentServiceStub(channel).Subscribe())
            except grpc.aio.AioRpcError as error:
                self._fleet.note_failure(f"{error.code().name}: {error.details()}")
            except BrokenStreamError as error:
                self._fleet.note_failure(f"broken: {error}")
                self._store_epoch = ""
            attempts = 0 if self.synced else attempts + 1
            self.synced = False
            await asyncio.sleep(random.uniform(0, min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2**attempts)))

    async def _hold(self, call: Any) -> None:
        hello = pb.Hello(
            agent_id=self.agent_id,
            boot_id=self._boot_id,
            version="fleet",
            store_epoch=self._store_epoch,
            timeline_id=self._timeline_id,
            applied_revision=self.revision,
            held=[pb.ObjectVersion(kind=key[0].value, key=key[1], version=self._held.find(key)) for key in self._held],
            state_digest=self._held.digest,
        )
        hello.boot_time.FromNanoseconds(self._boot_ns)
        await call.write(pb.SubscribeRequest(hello=hello))
        first = await call.read()
        if first is grpc.aio.EOF or first.WhichOneof("message") != "welcome":
            raise BrokenStreamError(f"no welcome: {first if first is grpc.aio.EOF else first.WhichOneof('message')}")
        welcome = first.welcome
        self.mode, snapshot = welcome.mode, welcome.mode == pb.SYNC_MODE_SNAPSHOT
        self.objects_received = 0
        coming = HeldVersions() if snapshot else self._held
        nonce = 0
        reporting = asyncio.create_task(self._report(call, welcome.heartbeat.ToNanoseconds() / 1e9))
        try:
            while True:
                message = await call.read()
                if message is grpc.aio.EOF:
                    return
                match message.WhichOneof("message"):
                    case "update":
                        update = message.update
                        nonce = _next(nonce, update.nonce)
                        self._take(coming, update)
                        if update.more or snapshot:
                            received = pb.Ack(applied_revision=self.revision, received_nonce=nonce)
                            await call.write(pb.SubscribeRequest(ack=received))
                            continue
                        self._apply(update.revision, update.oldest_commit_time.ToMicroseconds())
                        await call.write(_ack(nonce, self.revision))
                    case "sync_point":
                        point = message.sync_point
                        nonce = _next(nonce, point.nonce)
                        if point.state_digest != coming.digest:
                            raise BrokenStreamError("digest")
                        self._held, snapshot = coming, False
                        self._store_epoch, self._timeline_id = welcome.store_epoch, welcome.timeline_id
                        self._apply(point.revision, 0)
                        self._sync()
                        await call.write(_ack(nonce, self.revision))
                    case "bookmark":
                        self._apply(message.bookmark.revision, 0)
                        await call.write(_ack(0, self.revision))
                    case "go_away":
                        self._fleet.note_failure(f"sent away: {message.go_away.reason}")
                        return
        finally:
            reporting.cancel()
            call.cancel()

    async def _report(self, call: Any, heartbeat_s: float) -> None:
        """Say something each heartbeat, at a moment of its own."""
        await asyncio.sleep(heartbeat_s * random.random())
        while True:
            await call.write(pb.SubscribeRequest(report=pb.Report(flows=1)))
            await asyncio.sleep(heartbeat_s)

    def _take(self, held: HeldVersions, update: pb.Update) -> None:
        for part in update.sets:
            held.put((Kind.SET, part.group_id), part.version)
        for patch in update.set_patches:
            key = (Kind.SET, patch.group_id)
            if held.find(key) != patch.base_version:
                raise BrokenStreamError(f"base version {patch.base_version}, held {held.find(key)}")
            held.put(key, patch.version)
        for group in update.groups:
            held.put((Kind.GROUP, group.group_id), group.version)
        for server in update.servers:
            held.put((Kind.SERVER, server.server), server.version)
        for kind, names in (
            (Kind.SERVER, update.removed_servers),
            (Kind.GROUP, update.removed_groups),
            (Kind.SET, update.removed_sets),
        ):
            for name in names:
                held.drop((kind, name))
        self.objects_received += len(update.sets) + len(update.set_patches) + len(update.groups) + len(update.servers)

    def _apply(self, revision: int, commit_us: int) -> None:
        before, self.revision = self.revision, revision
        self._fleet.applied(before, revision, commit_us)

    def _sync(self) -> None:
        if not self.synced:
            self.synced = True
            self._fleet.note_sync()


class Fleet:
    """The agents of this process, and what is asked about them."""

    def __init__(self) -> None:
        self._agents: list[Agent] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._delays_us: list[int] = []
        self._failures: list[tuple[float, str]] = []
        self._awaited = sys.maxsize
        self._arrived = 0
        self._last_us = 0
        self._moved = asyncio.Event()

    def applied(self, before: int, revision: int, commit_us: int) -> None:
        now_us = time.time_ns() // 1000
        if commit_us:
            self._delays_us.append(now_us - commit_us)
        if before < self._awaited <= revision:
            self._arrived += 1
            self._last_us = now_us
            self._moved.set()

    def note_sync(self) -> None:
        self._moved.set()

    def note_failure(self, reason: str) -> None:
        self._failures.append((time.time(), reason))

    async def connect(self, address: str, prefix: str, first: int, count: int) -> dict[str, Any]:
        """Start agents ``prefix-first`` and on; answer when all are in sync."""
        started_s = time.monotonic()
        for number in range(first, first + count):
            agent = Agent(f"{prefix}-{number}", address, self)
            self._agents.append(agent)
            self._tasks.append(asyncio.create_task(agent.run()))
            while sum(not agent.synced for agent in self._agents) >= OPENING_MAX:
                await self._next_move()
        await self._until(self._all_synced)
        return {"s": time.monotonic() - started_s}

    async def expect(self, revision: int) -> dict[str, Any]:
        """Count from now on the agents that reach ``revision``, and forget delays and failures."""
        self._awaited, self._arrived, self._last_us = revision, 0, 0
        self._delays_us.clear()
        self._failures.clear()
        return {}

    async def arrived(self, count: int, timeout_s: float) -> dict[str, Any]:
        """Answer when ``count`` agents have reached the awaited revision, and at what time of day the last one did."""
        async with asyncio.timeout(timeout_s):
            await self._until(lambda: self._arrived >= count)
        return {"last_us": self._last_us}

    async def reach(self, revision: int, timeout_s: float) -> dict[str, Any]:
        """Answer when every agent is at ``revision`` or beyond."""
        async with asyncio.timeout(timeout_s):
            while not all(agent.synced and agent.revision >= revision for agent in self._agents):
                await asyncio.sleep(0.005)
        return {"at_us": time.time_ns() // 1000}

    async def lost(self, timeout_s: float) -> dict[str, Any]:
        """Answer when no agent is in sync any more."""
        async with asyncio.timeout(timeout_s):
            while any(agent.synced for agent in self._agents):
                await asyncio.sleep(0.001)
        return {}

    async def synced(self, timeout_s: float) -> dict[str, Any]:
        """Answer when every agent is in sync, and how they came to be."""
        async with asyncio.timeout(timeout_s):
            await self._until(self._all_synced)
        modes: dict[str, int] = {}
        for agent in self._agents:
            name = pb.SyncMode.Name(agent.mode)
            modes[name] = modes.get(name, 0) + 1
        return {
            "at_us": time.time_ns() // 1000,
            "modes": modes,
            "objects": sum(agent.objects_received for agent in self._agents),
        }

    async def seen(self) -> dict[str, Any]:
        """Answer the delays from commit to in force since ``expect``, in microseconds, and the failures with their times."""
        return {"delays_us": self._delays_us, "failures": self._failures}

    def _all_synced(self) -> bool:
        return all(agent.synced for agent in self._agents)

    async def _until(self, holds: Any) -> None:
        while not holds():
            await self._next_move()

    async def _next_move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            answer = await getattr(self, command.pop("do"))(**command)
            print(json.dumps(answer), flush=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _next(held: int, nonce: int) -> int:
    if nonce != held + 1:
        raise BrokenStreamError(f"nonce {nonce} after {held}")
    return nonce


def _ack(nonce: int, revision: int) -> pb.SubscribeRequest:
    return pb.SubscribeRequest(ack=pb.Ack(nonce=nonce, applied_revision=revision))


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(Fleet().serve())
