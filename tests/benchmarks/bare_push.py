"""The transport alone: a gRPC server that pushes one message to every stream when asked, and tells when the last ack was back."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import grpc

from secgroups.v1 import agent_service_pb2 as pb

MESSAGE_BYTES = 4096


class BarePush:
    """Streams that only count."""

    def __init__(self) -> None:
        self._contexts: list[Any] = []
        self._missing = 0
        self._done = asyncio.Event()
        self._nonce = 1
        self._message = b""

    async def subscribe(self, request_iterator: Any, context: Any) -> None:
        await context.read()
        welcome = pb.Welcome(store_epoch="e", mode=pb.SYNC_MODE_SNAPSHOT, revision=1)
        welcome.heartbeat.FromSeconds(3_600)
        await context.write(pb.SubscribeResponse(welcome=welcome).SerializeToString())
        point = pb.SyncPoint(nonce=1, revision=1, state_digest=bytes(16), snapshot_end=True)
        await context.write(pb.SubscribeResponse(sync_point=point).SerializeToString())
        await context.read()
        self._contexts.append(context)
        while await context.read() is not grpc.aio.EOF:
            self._missing -= 1
            if not self._missing:
                self._done.set()

    async def push(self, request: bytes, context: Any) -> bytes:
        """Push to all; answer in milliseconds how long it took."""
        self._nonce += 1
        group = pb.GroupRules(group_id="g", version=self._nonce, name="n" * MESSAGE_BYTES)
        update = pb.Update(nonce=self._nonce, revision=self._nonce, groups=[group])
        message = pb.SubscribeResponse(update=update).SerializeToString()
        self._missing = len(self._contexts)
        self._done.clear()
        started_ns = time.perf_counter_ns()
        await asyncio.gather(*(each.write(message) for each in self._contexts))
        await self._done.wait()
        return str((time.perf_counter_ns() - started_ns) / 1e6).encode()


async def serve(ready_file: Path) -> None:
    bare = BarePush()
    options = (
        ("grpc.so_reuseport", 0),
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
    )
    server = grpc.aio.server(options=options)
    stream = {"Subscribe": grpc.stream_stream_rpc_method_handler(bare.subscribe)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("secgroups.v1.AgentService", stream),))
    call = {"Push": grpc.unary_unary_rpc_method_handler(bare.push)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", call),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    new = ready_file.with_suffix(".new")
    new.write_text(json.dumps({"address": f"127.0.0.1:{port}"}))
    new.replace(ready_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-file", type=Path, required=True)
    asyncio.run(serve(parser.parse_args().ready_file))
