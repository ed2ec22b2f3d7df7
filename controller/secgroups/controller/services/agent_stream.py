"""One call of ``Subscribe``: moves messages between an agent and its channel, and keeps the time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import structlog

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks
from secgroups.controller.errors import InvalidError
from secgroups.controller.services.stream_wire import ack_of, hello_of, preview_result_of, report_of
from secgroups.controller.stream_messages import GoAway, Outbound, Update, Welcome
from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.controller.channel import AgentChannel
    from secgroups.controller.publisher import Publisher
    from secgroups.controller.services.stream_wire import Wire
    from secgroups.controller.stream_settings import StreamSettings

log = structlog.get_logger(__name__)

# An agent that has acknowledged nothing for this many heartbeats is taken for gone.
HEARTBEATS_MAX = 3

Context = grpc.aio.ServicerContext[pb.SubscribeRequest, pb.SubscribeResponse]


class AgentStream:
    """The stream of one agent, from its hello to its end."""

    def __init__(
        self, context: Context, publisher: Publisher, wire: Wire, settings: StreamSettings, clocks: Clocks = SYSTEM_CLOCKS
    ) -> None:
        self._context = context
        self._publisher = publisher
        self._wire = wire
        self._settings = settings
        self._clocks = clocks
        self._news = asyncio.Event()
        self._silence_s = HEARTBEATS_MAX * settings.heartbeat_s
        self._heard_s = self._clocks.monotonic_s()

    async def run(self) -> None:
        """Serve the agent until the stream ends. InvalidError if it breaks the rules of the stream."""
        try:
            async with asyncio.timeout(self._settings.hello_timeout_s):
                first = await self._context.read()
        except TimeoutError:
            await self._write(GoAway(reason="no hello came", reconnect_after_s=0))
            return
        if not isinstance(first, pb.SubscribeRequest):
            return
        channel = self._publisher.connect(hello_of(first), self._news.set, self._clocks.now_us())
        log.info("agent_connected", agent_id=channel.agent_id, boot_id=channel.hello.boot_id, host=channel.hello.host)
        reading = asyncio.create_task(self._read(channel))
        reading.add_done_callback(lambda _: self._news.set())
        reason = "its stream ended"
        try:
            reason = await self._send(channel, reading)
        except InvalidError as error:
            reason = str(error)
            raise
        finally:
            reading.cancel()
            self._publisher.disconnect(channel)
            log.info("agent_disconnected", agent_id=channel.agent_id, boot_id=channel.hello.boot_id, reason=reason)

    async def _send(self, channel: AgentChannel, reading: asyncio.Task[None]) -> str:
        """Send what there is to say, until the agent or the channel ends; return why it did."""
        heartbeat_s = self._clocks.monotonic_s() + self._settings.heartbeat_s
        quiet_until_s = 0.0
        while True:
            self._news.clear()
            if reading.done():
                reading.result()
                return "it ended the stream"
            now_s = self._clocks.monotonic_s()
            if now_s >= heartbeat_s:
                heartbeat_s = now_s + self._settings.heartbeat_s
                self._check_alive(channel, now_s)
                await self._write_all(channel, channel.heartbeat(self._clocks.monotonic_us()))
            if channel.has_news and now_s >= quiet_until_s:
                await self._write_all(
                    channel, messages := channel.next_messages(self._clocks.now_us(), self._clocks.monotonic_us())
                )
                if channel.ended:
                    return channel.ending_reason
                if messages and isinstance(messages[0], Welcome):
                    log.info("agent_welcomed", agent_id=channel.agent_id, mode=channel.mode.name, reason=channel.mode_reason)
                if any(isinstance(message, Update) for message in messages):
                    quiet_until_s = self._clocks.monotonic_s() + self._settings.coalesce_s
            if not self._news.is_set():
                await self._sleep(min(heartbeat_s, quiet_until_s) if channel.has_news else heartbeat_s)
            elif now_s < quiet_until_s:
                await asyncio.sleep(quiet_until_s - now_s)

    async def _sleep(self, until_s: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until_s - self._clocks.monotonic_s())):
                await self._news.wait()
        except TimeoutError:
            return

    def _check_alive(self, channel: AgentChannel, now_s: float) -> None:
        sent_us = channel.oldest_unacknowledged_us
        overdue = sent_us is not None and self._clocks.monotonic_us() - sent_us > self._silence_s * 1e6
        if overdue or now_s - self._heard_s > self._silence_s:
            channel.end(f"nothing was acknowledged for {self._silence_s:g} s", reconnect_after_s=0)

    async def _read(self, channel: AgentChannel) -> None:
        """Take what the agent says until it ends the stream. InvalidError if it says what it must not."""
        while True:
            request = await self._context.read()
            if not isinstance(request, pb.SubscribeRequest):
                return
            self._heard_s = self._clocks.monotonic_s()
            match request.WhichOneof("message"):
                case "ack":
                    channel.acknowledge(ack_of(request.ack), self._clocks.now_us(), self._clocks.monotonic_us())
                    self._publisher.heard(channel, self._clocks.now_us())
                case "report":
                    self._publisher.heard(channel, self._clocks.now_us(), report_of(request.report))
                case "preview_result":
                    channel.questions.answer(preview_result_of(request.preview_result))
                    self._publisher.heard(channel, self._clocks.now_us())
                case "hello":
                    raise InvalidError("hello", "stands only at the beginning of a stream")
                case _:
                    # A newer agent may say more than this controller understands.
                    self._publisher.heard(channel, self._clocks.now_us())

    async def _write_all(self, channel: AgentChannel, messages: list[Outbound]) -> None:
        for message in messages:
            if channel.ending_reason and not isinstance(message, GoAway):
                return
            # A write that hangs must not be cancelled: gRPC would then refuse to end the call. The agent counts as gone meanwhile,
            # and whatever frees the write, its return or the end of its connection, ends the stream.
            timer = asyncio.get_running_loop().call_later(self._silence_s, self._give_up, channel)
            try:
                await self._write(message)
            finally:
                timer.cancel()

    def _give_up(self, channel: AgentChannel) -> None:
        channel.end(f"nothing was taken for {self._silence_s:g} s", reconnect_after_s=0)
        self._publisher.disconnect(channel)

    async def _write(self, message: Outbound) -> None:
        await self._context.write(self._wire.response(message))
