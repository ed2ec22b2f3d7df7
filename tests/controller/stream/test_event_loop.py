"""The controller's event loop: all that gRPC has to say is heard, in fewer turns."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from secgroups.controller import event_loop
from secgroups.controller.event_loop import EventLoop

CALLS = 500


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each turn in which gRPC was heard, how many bytes its thread had written."""
    counted: list[int] = []
    read_once = event_loop._read_once

    def read(wakes: Any, take_events: Any, *args: Any) -> None:
        counted.append(len(wakes.recv(event_loop.WAKES_MAX, event_loop.socket.MSG_PEEK)))
        read_once(wakes, take_events, *args)

    monkeypatch.setattr(event_loop, "_read_once", read)
    return counted


def test_every_call_of_a_crowd_is_answered_and_wakes_that_came_together_cost_one_turn(turns: list[int]) -> None:
    async def echo(request: bytes, _: object) -> bytes:
        return request

    async def run() -> list[bytes]:
        server = grpc.aio.server()
        methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(60):
            call = channel.unary_unary("/test/Echo")
            answers = [await answer for answer in [call(str(number).encode()) for number in range(CALLS)]]
        await server.stop(None)
        return answers

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        answers = runner.run(run())
    assert answers == [str(number).encode() for number in range(CALLS)]
    # gRPC's reader was recognised, and turns took several bytes.
    assert turns
    assert max(turns) > 1
    assert len(turns) < sum(turns)


def test_other_readers_are_called_as_asyncio_calls_them() -> None:
    async def run() -> bytes:
        reader, writer = await asyncio.open_connection(sock=near)
        far.sendall(b"all of it")
        far.close()
        try:
            return await reader.read()
        finally:
            writer.close()

    near, far = event_loop.socket.socketpair()
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        assert runner.run(asyncio.wait_for(run(), 10)) == b"all of it"
