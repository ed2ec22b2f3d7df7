"""Streams between simulated agents and controllers: bytes that are late, held up or lost with their connection, always in order.

The two ends behave as those of grpc.aio do: an agent's call raises AioRpcError, answers EOF or is cancelled; a controller's context
answers EOF and has its handler cancelled when the connection is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from agent_life import AgentLife
    from controller_life import ControllerLife
    from virtual_loop import VirtualLoop

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Link:
    """The way between one agent and whatever controller there is. Delays in seconds."""

    def __init__(self) -> None:
        self.delay_s = 0.001
        self.jitter_s = 0.002
        self.up_blocked = False
        self.down_blocked = False
        self.refused = False
        self.capacity = 64


class Pipe:
    """One direction of a connection: messages arrive in order, if they do. A write waits while too many are under way or unread."""

    def __init__(self, loop: VirtualLoop, link: Link, blocked: Callable[[], bool]) -> None:
        self._loop = loop
        self._link = link
        self._blocked = blocked
        self._travelling: deque[tuple[float, bytes | None]] = deque()
        self._arrived: deque[bytes | None] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.broken = False

    @property
    def load(self) -> int:
        """How many messages are on their way or unread."""
        return len(self._travelling) + len(self._arrived)

    async def write(self, message: bytes) -> None:
        """Hand a message over; return when there is room for it. ConnectionError if the connection is lost."""
        while not self.broken and self.load >= self._link.capacity:
            waiter = self._loop.create_future()
            self._writers.append(waiter)
            await waiter
        if self.broken:
            raise ConnectionError("the connection is lost")
        self.send(message)

    def send(self, message: bytes | None) -> None:
        """Send a message, None for the end, whatever room there is."""
        link = self._link
        due_s = self._loop.time() + link.delay_s + self._loop.random.random() * link.jitter_s
        if self._travelling:
            due_s = max(due_s, self._travelling[-1][0])
        self._travelling.append((due_s, message))
        self._plan()

    def _plan(self) -> None:
        if self._timer is None and self._travelling:
            self._timer = self._loop.later(max(0.0, self._travelling[0][0] - self._loop.time()), self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if self.broken or self._blocked():
            return
        while self._travelling and self._travelling[0][0] <= self._loop.time():
            self._arrived.append(self._travelling.popleft()[1])
        self._wake_reader()
        self._plan()

    def unblock(self) -> None:
        """Go on after the way was blocked."""
        self._plan()

    async def read(self) -> bytes | None:
        """Return the next message, None at the end. ConnectionError if the connection is lost and nothing is left."""
        while not self._arrived:
            if self.broken:
                raise ConnectionError("the connection is lost")
            self._reader = self._loop.create_future()
            await self._reader
        message = self._arrived.popleft()
        if self._writers:
            waiter = self._writers.popleft()
            if not waiter.done():
                waiter.set_result(None)
        return message

    def break_off(self) -> None:
        """Lose what is on its way, and the connection."""
        self.broken = True
        self._travelling.clear()
        self._wake_reader()
        while self._writers:
            waiter = self._writers.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Connection:
    """A stream between one life of an agent and one of a controller."""

    def __init__(self, loop: VirtualLoop, link: Link, agent: AgentLife, controller: ControllerLife, number: int) -> None:
        self.number = number
        self.link = link
        self.agent = agent
        self.controller = controller
        self.up = Pipe(loop, link, lambda: link.up_blocked)
        self.down = Pipe(loop, link, lambda: link.down_blocked)
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.handler: asyncio.Task[None] | None = None
        self.messages = 0
        self.reset_after: int | None = None
        # What was seen on it, for the checks.
        self.came_with: frozenset[str] = frozenset()
        self.held_servers: set[str] = set()
        self.step_from: int | None = None
        self._loop = loop

    def reset(self, agent_delay_s: float = 0.0, controller_delay_s: float = 0.0) -> None:
        """Lose the connection; each end finds out after its delay."""
        self._loop.later(agent_delay_s, self.end_at_agent)
        self._loop.later(controller_delay_s, self.end_at_controller)

    def end_at_agent(self) -> None:
        """Let the agent find out that the connection is lost."""
        self.status = self.status or (UNAVAILABLE, "Socket closed")
        self.down.break_off()

    def end_at_controller(self) -> None:
        """Let the controller find out: reads end, and the handler is cancelled a little later, as grpc.aio does."""
        if self.up.broken:
            return
        self.up.break_off()
        handler = self.handler
        if handler is not None and not handler.done() and self.controller.process.alive:
            self._loop.call_later(self._loop.random.random() * 0.002, handler.cancel, context=self.controller.process.context)


class ServerContext:
    """The controller's end, as a grpc.aio.ServicerContext."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self) -> Any:
        try:
            message = await self._connection.up.read()
        except ConnectionError:
            return grpc.aio.EOF
        return grpc.aio.EOF if message is None else message

    async def write(self, packed: bytes) -> None:
        connection = self._connection
        if connection.up.broken:
            raise asyncio.InvalidStateError("the connection is lost")
        for out in connection.controller.world.network.on_down(connection, packed):
            try:
                await connection.down.write(out)
            except ConnectionError:
                # As for grpc.aio: a batch on a call that is gone fails.
                raise grpc.aio.InternalError("the connection is lost") from None


class ClientCall:
    """The agent's end, as a grpc.aio.StreamStreamCall."""

    def __init__(self, agent: AgentLife) -> None:
        self._agent = agent
        self._loop = agent.world.loop
        self._connection: Connection | None = None
        self._connected: asyncio.Future[Connection | None] | None = None
        self._cancelled = False
        self._ended: tuple[grpc.StatusCode, str] | None = None

    async def _connect(self) -> Connection:
        if self._connection is None:
            if self._connected is None:
                self._connected = self._loop.create_future()
                self._agent.world.network.connect(self._agent, self._connected)
            connection = await self._connected
            if connection is None:
                self._ended = self._ended or (UNAVAILABLE, "failed to connect to all addresses")
                raise self._error()
            self._connection = connection
        return self._connection

    def _error(self) -> BaseException:
        if self._cancelled:
            return asyncio.CancelledError()
        code, details = self._ended or (grpc.StatusCode.UNKNOWN, "")
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    async def write(self, message: pb.SubscribeRequest) -> None:
        if self._cancelled or self._ended is not None:
            raise asyncio.InvalidStateError("the call is over")
        try:
            connection = await self._connect()
            for out in connection.controller.world.network.on_up(connection, message.SerializeToString()):
                if connection.down.broken:
                    raise ConnectionError("lost")  # noqa: TRY301
                await connection.up.write(out)
        except ConnectionError:
            self._ended = self._ended or (connection.status or (UNAVAILABLE, "Socket closed"))
            if self._ended[0] is grpc.StatusCode.OK:
                raise asyncio.InvalidStateError("the call is over") from None
            raise self._error() from None
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def read(self) -> Any:
        if self._cancelled or (self._ended is not None and self._ended[0] is not grpc.StatusCode.OK):
            raise self._error()
        if self._ended is not None:
            return grpc.aio.EOF
        try:
            connection = await self._connect()
            message = await connection.down.read()
        except ConnectionError:
            self._ended = connection.status or (UNAVAILABLE, "Socket closed")
            raise self._error() from None
        except asyncio.CancelledError:
            self.cancel()
            raise
        if message is None:
            self._ended = connection.status or (grpc.StatusCode.OK, "")
            if self._ended[0] is grpc.StatusCode.OK:
                return grpc.aio.EOF
            raise self._error()
        response = pb.SubscribeResponse.FromString(message)
        self._agent.about_to_take(connection, response)
        return response

    async def code(self) -> grpc.StatusCode:
        return self._ended[0] if self._ended else grpc.StatusCode.CANCELLED

    async def details(self) -> str:
        return self._ended[1] if self._ended else ""

    def cancel(self) -> bool:
        if self._cancelled or self._ended is not None:
            return False
        self._cancelled = True
        if self._connected is not None and not self._connected.done():
            self._connected.cancel()
        connection = self._connection
        if connection is not None:
            connection.down.break_off()
            self._agent.world.network.hung_up(connection)
        return True


class Dialling:
    """What opens a stream for as long as it is entered."""

    def __init__(self, agent: AgentLife) -> None:
        self._call = ClientCall(agent)

    async def __aenter__(self) -> ClientCall:
        return self._call

    async def __aexit__(self, *error: object) -> None:
        self._call.cancel()
