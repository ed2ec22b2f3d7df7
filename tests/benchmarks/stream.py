"""Verdicts over gRPC: DecideStream of a real agent server in a process of its own, beside an empty handler for the same bytes.

One stream on loopback; the client keeps a few batches under way. Client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parent))

from traffic import ACK, SYN, decide, flagged, made_site, packets, turned

from secgroups.agent.records import RECORD_BYTES, VERDICT_BYTES
from secgroups.agent.replica import Replica
from secgroups.agent.server import AgentServer
from secgroups.agent.services.verdicts import Verdicts
from secgroups.agent.subscription import Identity, Subscription
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

FLOWS = 100_000
RULES = 1_000
SERVERS = 64
SEED = 7
BATCH_RECORDS = 16_384
BATCHES = 200
UNDER_WAY = 4
ECHO = "/secgroups.bench.Echo/Echo"
_OPTIONS = (("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20))


def measure(runs: int) -> dict[str, list[float]]:
    """Return millions of verdicts a second, and of records through the empty handler, for each run."""
    found: dict[str, list[float]] = {"stream_mps": [], "echo_stream_mps": []}
    with serving() as address:
        for _ in range(runs):
            for name, client in (("stream_mps", verdicts_mps), ("echo_stream_mps", echo_mps)):
                found[name].append(asyncio.run(client(address)))
    return found


def main() -> None:
    """Serve, for ``measure`` in another process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="serve until standard input ends")
    if parser.parse_args().serve:
        asyncio.run(serve())
        return
    print(measure(3))


@contextmanager
def serving() -> Iterator[str]:
    """Start the server in a process of its own and give its address."""
    command = [sys.executable, str(Path(__file__)), "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


async def serve() -> None:
    """Serve a site whose connections are open, and an echo, until standard input ends."""
    site = made_site(RULES, SERVERS, 2 * FLOWS, SEED, now_ns=time.monotonic_ns())
    syns = packets(site, FLOWS, 443, SYN, SEED)
    for records in (syns, turned(syns, SYN | ACK), flagged(syns, ACK)):
        decide(site, records, time.monotonic_ns())
    replica = Replica(site.firewall)
    identity = Identity(agent_id="bench", boot_id="bench", boot_time_ns=0, version="")
    subscription = Subscription(
        "127.0.0.1:1", identity, site.firewall, replica, applied=lambda: None, reconnect_min_s=1, reconnect_max_s=1
    )
    server = AgentServer("127.0.0.1:0", Verdicts("bench", site.firewall, replica, subscription))
    await server.start()
    # The empty handler has a server of its own with the same options.
    echo = grpc.aio.server(options=_OPTIONS)
    echo.add_generic_rpc_handlers((_echo_handler(),))
    port = echo.add_insecure_port("127.0.0.1:0")
    await echo.start()
    print(f"{server.address} 127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    await echo.stop(0)


def _echo_handler() -> grpc.GenericRpcHandler:
    async def echo(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request[: len(request) // (RECORD_BYTES // VERDICT_BYTES)]

    handler = grpc.stream_stream_rpc_method_handler(echo)
    return grpc.method_handlers_generic_handler("secgroups.bench.Echo", {"Echo": handler})


async def verdicts_mps(addresses: str) -> float:
    """Return millions of verdicts a second."""
    async with grpc.aio.insecure_channel(addresses.split()[0], options=_OPTIONS) as channel:
        stub = VerdictServiceStub(channel)
        call = stub.DecideStream()
        await call.write(pb.DecideStreamRequest(servers=[f"p/s{number}" for number in range(SERVERS)]))
        handles = list((await call.read()).server_handles)
        site = made_site(RULES, SERVERS, 4, SEED)
        site.handles[:] = handles
        data = flagged(packets(site, FLOWS, 443, SYN, SEED), ACK)
        whole = data.tobytes()
        size = BATCH_RECORDS * RECORD_BYTES
        requests = [pb.DecideStreamRequest(records=whole[at : at + size]) for at in range(0, len(whole) - size, size)]

        def check(response: pb.DecideStreamResponse) -> int:
            return len(response.verdicts) // VERDICT_BYTES

        return await timed(call, requests, check)


async def echo_mps(addresses: str) -> float:
    """Return millions of records a second through the empty handler."""
    async with grpc.aio.insecure_channel(addresses.split()[1], options=_OPTIONS) as channel:
        call = channel.stream_stream(ECHO)()
        requests = [bytes(BATCH_RECORDS * RECORD_BYTES)] * 4
        return await timed(call, requests, lambda response: len(response) // VERDICT_BYTES)


async def timed(call: grpc.aio.StreamStreamCall, requests: list, count: Callable[[object], int]) -> float:
    """Return millions of answers a second with a few batches under way."""
    written = answered = 0
    begun = time.perf_counter()
    for written in range(UNDER_WAY):
        await call.write(requests[written % len(requests)])
    for number in range(BATCHES):
        answered += count(await call.read())
        if number + UNDER_WAY < BATCHES:
            await call.write(requests[(number + UNDER_WAY) % len(requests)])
    elapsed = time.perf_counter() - begun
    await call.done_writing()
    assert answered == BATCHES * BATCH_RECORDS
    return answered / elapsed / 1e6


if __name__ == "__main__":
    main()
