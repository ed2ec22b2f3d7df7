"""One call of ``Subscribe``: moves messages between an agent and its channel, and keeps the time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog
from google.protobuf.message import DecodeError

from secgroups.controller.errors import InvalidError
from secgroups.controller.services.signal import Signal
from secgroups.controller.services.stream_wire import ack_of, hello_of, preview_result_of, report_of
from secgroups.controller.stream_messages import GoAway, Outbound, Report, Update, Welcome
from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from secgroups.controller.channel import AgentChannel
    from secgroups.controller.clocks import Clocks
    from secgroups.controller.metrics import Counts
    from secgroups.controller.publisher import Publisher
    from secgroups.controller.services.pace import Pace
    from secgroups.controller.services.stream_wire import Wire
    from secgroups.controller.stream_settings import StreamSettings

log = structlog.get_logger(__name__)

# An agent that has acknowledged nothing for this many heartbeats is taken for gone.
HEARTBEATS_MAX = 3
# What an agent may say within a second. One that is told something every few milliseconds and acknowledges each stays far below.
SAID_MESSAGES_MAX = 2_000
SAID_BYTES_MAX = 8 << 20
SENT_AWAY_S = 30.0


class Context(Protocol):
    """What is used of a gRPC context of a call that carries bytes: ``read`` answers bytes, or something else at the end."""

    async def read(self) -> object: ...

    async def write(self, message: bytes) -> None: ...


class AgentStream:
    """The stream of one agent, from its hello to its end."""

    def __init__(
        self,
        context: Context,
        publisher: Publisher,
        wire: Wire,
        settings: StreamSettings,
        pace: Pace,
        clocks: Clocks,
        counts: Counts,
    ) -> None:
        self._counts = counts
        self._context = context
        self._publisher = publisher
        self._wire = wire
        self._settings = settings
        self._pace = pace
        self._clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._news = Signal()
        self._silence_s = HEARTBEATS_MAX * settings.heartbeat_s
        self._heard_s = self._clocks.monotonic_s()
        self._writing_since_s: float | None = None
        self._beat_is_due = False
        self._is_waiting_turn = False
        self._quiet_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._second_until_s = 0.0
        self._said_messages = self._said_bytes = 0

    async def run(self, check_is_agent: Callable[[str], None] = lambda _: None) -> None:
        """Serve the agent until the stream ends. InvalidError if it breaks the rules of the stream.

        ``check_is_agent`` raises if the caller is not the agent that the hello names.
        """
        try:
            async with asyncio.timeout(self._settings.hello_timeout_s):
                first = await self._context.read()
        except TimeoutError:
            await self._write(GoAway(reason="no hello came", reconnect_after_s=0))
            return
        if not isinstance(first, bytes):
            return
        channel = self._connect(first, check_is_agent)
        # A coroutine keeps what its variables hold for as long as it runs, which is the life of the stream.
        del first
        self._heard(channel)
        log.info("agent_connected", agent_id=channel.agent_id, boot_id=channel.hello.boot_id, host=channel.hello.host)
        reading = asyncio.create_task(self._read(channel))
        reading.add_done_callback(self._reading_ended)
        self._timer = self._loop.call_later(self._settings.heartbeat_s, self._beat, channel)
        # In turn: all agents may come back at once.
        self._wake()
        reason = "its stream ended"
        try:
            reason = await self._send(channel, reading)
        except InvalidError as error:
            reason = str(error)
            raise
        finally:
            reading.cancel()
            for timer in filter(None, (self._timer, self._quiet_timer)):
                timer.cancel()
            self._publisher.disconnect(channel)
            log.info("agent_disconnected", agent_id=channel.agent_id, boot_id=channel.hello.boot_id, reason=reason)

    def _connect(self, first: bytes, check_is_agent: Callable[[str], None]) -> AgentChannel:
        """Open the channel of the agent whose hello came first, which may name thousands of objects that it holds."""
        hello = hello_of(_parsed(first))
        check_is_agent(hello.agent_id)
        return self._publisher.connect(hello, self._wake, self._clocks.now_us())

    def _reading_ended(self, reading: asyncio.Task[None]) -> None:
        # Whoever sends looks at it, unless that has ended before.
        if not reading.cancelled():
            reading.exception()
        self._news.set()

    def _wake(self) -> None:
        """Let the sending side look, in turn with the streams that were woken before."""
        if not self._is_waiting_turn and not self._news.is_set():
            self._is_waiting_turn = True
            self._pace.wake(self._take_turn)

    def _take_turn(self) -> None:
        self._is_waiting_turn = False
        self._news.set()

    def _beat(self, channel: AgentChannel) -> None:
        """Each heartbeat: have it said, and see whether the agent is alive. One timer a stream, however much is sent on it."""
        now_s = self._clocks.monotonic_s()
        self._timer = self._loop.call_later(self._settings.heartbeat_s, self._beat, channel)
        sent_us = channel.oldest_unacknowledged_us
        overdue = sent_us is not None and self._clocks.monotonic_us() - sent_us > self._silence_s * 1e6
        if overdue or now_s - self._heard_s > self._silence_s:
            channel.end(f"nothing was acknowledged for {self._silence_s:g} s", reconnect_after_s=0)
        if self._writing_since_s is not None and now_s - self._writing_since_s > self._silence_s:
            # A write that hangs must not be cancelled: gRPC would then refuse to end the call. The agent counts as gone meanwhile,
            # and whatever frees the write, its return or the end of its connection, ends the stream.
            channel.end(f"nothing was taken for {self._silence_s:g} s", reconnect_after_s=0)
            self._publisher.disconnect(channel)
        self._beat_is_due = True
        self._news.set()

    async def _send(self, channel: AgentChannel, reading: asyncio.Task[None]) -> str:
        """Send what there is to say, until the agent or the channel ends; return why it did."""
        while True:
            await self._news.wait()
            self._news.clear()
            if reading.done():
                reading.result()
                return "it ended the stream"
            if self._beat_is_due:
                self._beat_is_due = False
                await self._write_all(channel, channel.heartbeat(self._clocks.monotonic_us()))
            if not channel.has_news or self._must_rest(channel):
                continue
            messages = channel.next_messages(self._clocks.now_us(), self._clocks.monotonic_us())
            await self._write_all(channel, messages)
            if channel.ended:
                return channel.ending_reason
            if messages and isinstance(messages[0], Welcome):
                self._counts.streams[channel.mode.name] += 1
                log.info("agent_welcomed", agent_id=channel.agent_id, mode=channel.mode.name, reason=channel.mode_reason)
            if messages and isinstance(messages[-1], Update) and not messages[-1].more:
                self._quiet_until_s = self._clocks.monotonic_s() + self._settings.coalesce_s
            # Not for as long as nothing else is to be sent.
            del messages
            # There may be more than what the window, or the last look, had room for.
            if channel.has_news:
                self._news.set()

    def _must_rest(self, channel: AgentChannel) -> bool:
        """Whether it is too soon after the last update; then the sending side is woken when it is time."""
        now_s = self._clocks.monotonic_s()
        if now_s >= self._quiet_until_s or channel.ending_reason:
            return False
        if self._quiet_timer is None or self._quiet_timer.when() <= self._loop.time():
            self._quiet_timer = self._loop.call_later(self._quiet_until_s - now_s, self._wake)
        return True

    async def _read(self, channel: AgentChannel) -> None:
        """Take what the agent says until it ends the stream. InvalidError if it says what it must not."""
        while True:
            said = await self._context.read()
            if not isinstance(said, bytes):
                return
            if not self._count(channel, len(said)):
                # Nothing more of it is read; the end of the stream ends this wait.
                await self._loop.create_future()
            await self._pace.until_told()
            request = _parsed(said)
            match request.WhichOneof("message"):
                case "ack":
                    channel.acknowledge(ack_of(request.ack), self._clocks.now_us(), self._clocks.monotonic_us())
                    self._heard(channel)
                case "report":
                    self._heard(channel, report_of(request.report, self._clocks.now_us()))
                case "preview_result":
                    channel.questions.answer(preview_result_of(request.preview_result))
                    self._heard(channel)
                case "hello":
                    raise InvalidError("hello", "stands only at the beginning of a stream")
                case _:
                    # A newer agent may say more than this controller understands.
                    self._heard(channel)
            # Not for as long as it says nothing else.
            del said, request

    def _heard(self, channel: AgentChannel, report: Report | None = None) -> None:
        self._publisher.heard(channel, self._clocks.now_us(), self._clocks.monotonic_us(), report)

    def _count(self, channel: AgentChannel, said_bytes: int) -> bool:
        """Count what the agent says; whether it may say that much. One that may not is sent away."""
        self._heard_s = self._clocks.monotonic_s()
        if self._heard_s >= self._second_until_s:
            self._second_until_s = self._heard_s + 1.0
            self._said_messages = self._said_bytes = 0
        self._said_messages += 1
        self._said_bytes += said_bytes
        if self._said_messages <= SAID_MESSAGES_MAX and self._said_bytes <= SAID_BYTES_MAX:
            return True
        reason = f"it said more than {SAID_MESSAGES_MAX:,} messages or {SAID_BYTES_MAX >> 20} MiB in a second"
        channel.end(reason, reconnect_after_s=SENT_AWAY_S)
        return False

    async def _write_all(self, channel: AgentChannel, messages: list[Outbound]) -> None:
        for message in messages:
            if channel.ending_reason and not isinstance(message, GoAway):
                return
            await self._write(message)

    async def _write(self, message: Outbound) -> None:
        self._writing_since_s = self._clocks.monotonic_s()
        encoded = self._wire.encoded(message)
        self._counts.messages += 1
        self._counts.message_bytes += len(encoded)
        await self._context.write(encoded)
        self._writing_since_s = None


def _parsed(said: bytes) -> pb.SubscribeRequest:
    try:
        return pb.SubscribeRequest.FromString(said)
    except DecodeError:
        raise InvalidError("message", "is no SubscribeRequest") from None
