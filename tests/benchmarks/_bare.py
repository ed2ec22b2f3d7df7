"""The yardstick of ``fanout``: an empty grpc.aio server, which pushes one message to all streams and awaits all acks.

Commands are lines on standard input: ``count`` answers how many streams are open, ``push`` the milliseconds from the first write to
the last acknowledgement.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from typing import Any

import grpc

from secgroups.v1 import agent_service_pb2 as pb

# Of a group of ten rules, about what a change of a rule is.
PAYLOAD_BYTES = 700


class Pusher:
    """All streams, which wait for the next push together."""

    def __init__(self) -> None:
        self.streams = 0
        self._waiting = 0
        self._acknowledged = asyncio.Event()
        self._pushed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def subscribe(self, _requests: Any, context: Any) -> None:
        """Serve one stream."""
        await context.read()
        await context.write(pb.SubscribeResponse(welcome=pb.Welcome(mode=pb.SYNC_MODE_SNAPSHOT)).SerializeToString())
        point = pb.SyncPoint(nonce=1, snapshot_end=True, state_digest=bytes(16))
        await context.write(pb.SubscribeResponse(sync_point=point).SerializeToString())
        await context.read()
        self.streams += 1
        while True:
            await context.write(await self._pushed)
            await context.read()
            self._waiting -= 1
            if not self._waiting:
                self._acknowledged.set()

    async def push(self, nonce: int) -> float:
        """Return milliseconds."""
        group = pb.GroupRules(group_id="g", version=nonce, name="x" * PAYLOAD_BYTES)
        message = pb.SubscribeResponse(update=pb.Update(nonce=nonce, revision=nonce, groups=[group])).SerializeToString()
        self._waiting = self.streams
        self._acknowledged.clear()
        begun_ns = time.perf_counter_ns()
        pushed, self._pushed = self._pushed, asyncio.get_running_loop().create_future()
        pushed.set_result(message)
        await self._acknowledged.wait()
        return (time.perf_counter_ns() - begun_ns) / 1e6


async def main() -> None:
    """Serve until standard input ends."""
    pusher = Pusher()
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.server.max_pending_requests", 20_000),
            ("grpc.server.max_pending_requests_hard_limit", 20_000),
        )
    )
    handler: Any = grpc.stream_stream_rpc_method_handler(pusher.subscribe)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("secgroups.v1.AgentService", {"Subscribe": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    nonce = 1
    while line := await reader.readline():
        if line.strip() == b"push":
            nonce += 1
            print(await pusher.push(nonce), flush=True)
        else:
            print(pusher.streams, flush=True)
    await server.stop(0)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main())
