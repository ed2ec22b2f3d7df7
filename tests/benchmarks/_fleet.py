"""A process full of simulated agents, for ``fanout``; commands and answers are lines of JSON on standard input and output.

These are not the product's agent: they enforce nothing. They are true to the protocol: a TCP connection and a stream each, they
parse what comes, keep versions and their digest, check nonces, base versions and digests, acknowledge, reconnect with full jitter,
and say so if anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _http2 import Call

from secgroups.agent.held import HeldVersions, Kind
from secgroups.v1 import agent_service_pb2 as pb

SUBSCRIBE = "/secgroups.v1.AgentService/Subscribe"
# As the product's agent waits.
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
# Connections begun at one time by one process.
DIALS_MAX = 64


class Agent:
    """One agent: what it holds and its stream."""

    def __init__(self, fleet: Fleet, agent_id: str) -> None:
        self.fleet = fleet
        self.agent_id = agent_id
        self.boot_id = str(uuid.uuid4())
        self.revision = 0
        self.synced = False
        self._epoch = self._timeline = ""
        self._told_epoch = self._told_timeline = ""
        self._held = HeldVersions()
        self._call: Call | None = None
        self._nonce = 0
        self._is_snapshot = False
        self._mentioned: HeldVersions | None = None
        self._failures = 0
        self._oldest_us = 0

    async def dial(self) -> None:
        """Connect and say hello; try again later if that fails."""
        call = Call(SUBSCRIBE, self._heard, self._ended)
        self._call = call
        self._nonce = 0
        try:
            async with self.fleet.dials:
                await asyncio.get_running_loop().create_connection(lambda: call, *self.fleet.address)
        except OSError:
            self._again(0)
            return
        hello = pb.Hello(
            agent_id=self.agent_id,
            boot_id=self.boot_id,
            version="fleet",
            store_epoch=self._epoch,
            timeline_id=self._timeline,
            applied_revision=self.revision,
            held=[pb.ObjectVersion(kind=kind.value, key=key, version=version) for (kind, key), version in self._held],
            state_digest=self._held.digest,
        )
        hello.boot_time.FromNanoseconds(self.fleet.boot_time_ns)
        call.say(pb.SubscribeRequest(hello=hello).SerializeToString())

    def close(self) -> None:
        if self._call is not None:
            self._call.close()

    def _ended(self, reason: str, wait_s: float = 0) -> None:
        if self.synced:
            self.fleet.ends[reason] = self.fleet.ends.get(reason, 0) + 1
        self._again(wait_s)

    def _again(self, wait_s: float) -> None:
        self.synced = False
        bound_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 1.25**self._failures)
        self._failures += 1
        delay_s = wait_s + random.uniform(0, bound_s)
        asyncio.get_running_loop().call_later(delay_s, lambda: self.fleet.start(self.dial()))

    def _heard(self, data: bytes) -> None:
        message = pb.SubscribeResponse.FromString(data)
        match message.WhichOneof("message"):
            case "update":
                self._update(message.update)
            case "sync_point":
                self._sync_point(message.sync_point)
            case "bookmark":
                self._say(pb.Ack(applied_revision=self.revision))
            case "welcome":
                self._is_snapshot = message.welcome.mode == pb.SYNC_MODE_SNAPSHOT
                self._mentioned = HeldVersions() if self._is_snapshot else None
                self._told_epoch, self._told_timeline = message.welcome.store_epoch, message.welcome.timeline_id
                self.fleet.modes[pb.SyncMode.Name(message.welcome.mode)] += 1
            case "go_away":
                assert self._call is not None
                self._call.close()
                self._ended(f"go away: {message.go_away.reason}", message.go_away.reconnect_after.ToNanoseconds() / 1e9)

    def _say(self, ack: pb.Ack) -> None:
        assert self._call is not None
        self._call.say(pb.SubscribeRequest(ack=ack).SerializeToString())

    def _check_nonce(self, nonce: int) -> None:
        self._nonce += 1
        if nonce != self._nonce:
            self.fleet.fail(f"{self.agent_id}: nonce {nonce} came, not {self._nonce}")

    def _update(self, update: pb.Update) -> None:
        self._check_nonce(update.nonce)
        held = self._mentioned if self._mentioned is not None else self._held
        for made in update.sets:
            held.put((Kind.SET, made.group_id), made.version)
        for patch in update.set_patches:
            key = (Kind.SET, patch.group_id)
            if dict(held).get(key) != patch.base_version:
                self.fleet.fail(f"{self.agent_id}: a patch of set {patch.group_id} from {patch.base_version}, which is not held")
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
        if update.HasField("oldest_commit_time") and not self._oldest_us:
            self._oldest_us = update.oldest_commit_time.ToMicroseconds()
        if update.more:
            self._say(pb.Ack(applied_revision=self.revision, received_nonce=update.nonce))
            return
        self._in_force(update.nonce, update.revision)

    def _sync_point(self, point: pb.SyncPoint) -> None:
        self._check_nonce(point.nonce)
        if self._mentioned is not None and point.snapshot_end:
            self._held, self._mentioned = self._mentioned, None
        if point.state_digest != self._held.digest:
            self.fleet.fail(f"{self.agent_id}: its digest is not that of the sync point")
        self._epoch, self._timeline = self._told_epoch, self._told_timeline
        self.synced = True
        self._failures = 0
        self._in_force(point.nonce, point.revision)

    def _in_force(self, nonce: int, revision: int) -> None:
        self.revision = revision
        if self._oldest_us:
            self.fleet.applied.append((self.agent_id, revision, time.time_ns() // 1000 - self._oldest_us))
            self._oldest_us = 0
        self._say(pb.Ack(nonce=nonce, applied_revision=revision, received_nonce=nonce))


class Fleet:
    """The agents of this process."""

    def __init__(self, address: str, agent_ids: list[str]) -> None:
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))
        self.dials = asyncio.Semaphore(DIALS_MAX)
        self.boot_time_ns = time.time_ns()
        # Agent, revision, microseconds from the oldest commit in it to its application.
        self.applied: list[tuple[str, int, int]] = []
        self.ends: dict[str, int] = {}
        self.modes = dict.fromkeys(list(pb.SyncMode.keys()), 0)
        self.failures: list[str] = []
        self.agents = [Agent(self, agent_id) for agent_id in agent_ids]
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def fail(self, what: str) -> None:
        if len(self.failures) < 10:
            self.failures.append(what)

    def answer(self, command: str) -> dict[str, Any]:
        """Answer one command of ``fanout``."""
        match command:
            case "connect":
                for agent in self.agents:
                    self.start(agent.dial())
            case "take":
                applied, self.applied = self.applied, []
                return {"applied": applied, "failures": self.failures}
            case "forget":
                self.ends, self.modes = {}, dict.fromkeys(self.modes, 0)
        return {
            "synced": sum(agent.synced for agent in self.agents),
            "least_revision": min(agent.revision for agent in self.agents),
            "ends": self.ends,
            "modes": self.modes,
            "failures": self.failures,
        }


async def serve(address: str, first: int, until: int) -> None:
    """Run agents ``first`` to ``until`` - 1 until standard input ends."""
    loop = asyncio.get_running_loop()
    fleet = Fleet(address, [f"agent-{number}" for number in range(first, until)])
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(fleet.answer(line.decode().strip())), flush=True)
    for agent in fleet.agents:
        agent.close()


if __name__ == "__main__":
    # In the field agents are on machines of their own. Here they wait for the controller rather than push it off its processor, as
    # a process that is woken by a message otherwise does.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
