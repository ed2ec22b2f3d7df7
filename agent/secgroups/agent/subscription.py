"""Keeps the stream to the controller: subscribes, applies, acknowledges, and connects again whatever happens.

What is in force stays in force while there is no stream; only a whole step of the controller changes it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import structlog

from secgroups.agent.backoff import Backoff
from secgroups.agent.convert import held_back_message
from secgroups.agent.delays import Delays
from secgroups.agent.errors import BaseVersionError, EnforcementError, HeldBackError, StreamError, UnenforceableError
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Action
from secgroups.agent.preview_answers import PreviewAnswers
from secgroups.agent.replica import UNIMPLEMENTED, Applied, Replica
from secgroups.agent.transport import OpenChannel, open_plaintext
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub

log = structlog.get_logger(__name__)

WELCOME_TIMEOUT_S = 10.0
# Silence longer than this many heartbeats means that the other side is gone.
HEARTBEATS_MAX = 3
# A heartbeat outside of these is taken as the nearer one.
HEARTBEAT_BOUNDS_S = (0.01, 3600.0)
# A controller takes 4 MiB from its callers. Reached with about 65,000 objects.
HELLO_BYTES_MAX = 4_000_000

Call = grpc.aio.StreamStreamCall[pb.SubscribeRequest, pb.SubscribeResponse]
# Opens a stream to the controller at an address, for as long as it is entered.
Connect = Callable[[str], AbstractAsyncContextManager[Call]]


def connecting(open_channel: OpenChannel) -> Connect:
    """Return what opens a stream on a connection of its own."""

    @asynccontextmanager
    async def connect(controller: str) -> AsyncIterator[Call]:
        async with open_channel(controller) as channel:
            yield AgentServiceStub(channel).Subscribe()

    return connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this agent is; ``boot_id`` and ``boot_time_ns`` (since the epoch) are of this start."""

    agent_id: str
    boot_id: str
    boot_time_ns: int
    version: str


class _EndedError(Exception):
    """The stream is over; ``wait_s`` is how long the controller asks to stay away."""

    def __init__(self, reason: str, wait_s: float = 0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Subscription:
    """The agent's end of ``AgentService.Subscribe``. ``applied`` is called when something else is in force.

    ``enforce`` has somebody else enforce what the firewall has in force, before that is acknowledged. If it raises
    EnforcementError, nothing is acknowledged, and a full state is asked for again.
    """

    def __init__(
        self,
        controller: str,
        identity: Identity,
        firewall: Firewall,
        replica: Replica,
        *,
        applied: Callable[[], None],
        enforce: Callable[[], Awaitable[None]] | None = None,
        reconnect_min_s: float,
        reconnect_max_s: float,
        clock: Callable[[], int] = time.monotonic_ns,
        time_of_day_ns: Callable[[], int] = time.time_ns,
        connect: Connect | None = None,
    ) -> None:
        self.connected = False
        self.last_heard_ns: int | None = None
        self._controller = controller
        self._identity = identity
        self._firewall = firewall
        self._replica = replica
        self._applied = applied
        self._enforce = enforce
        self._backoff = Backoff(reconnect_min_s, reconnect_max_s, random.uniform)
        self._clock = clock
        self._time_of_day_ns = time_of_day_ns
        # From the commit of the oldest change of an update until it was in force, and how long applying took.
        self.commit_to_in_force = Delays()
        self.apply_times = Delays()
        self._connect = connect or connecting(open_plaintext)
        self._heartbeat_s = HEARTBEAT_BOUNDS_S[0]
        self._writing = asyncio.Lock()
        self._previews = PreviewAnswers(firewall, clock)
        # What was said of the snapshot that is held back: whose, how many servers it would remove, of how many.
        self._said_held_back: tuple[str, int, int] | None = None

    async def run(self) -> None:
        """Stay subscribed until cancelled. The first attempt is made at once."""
        while True:
            wait_s = await self._attempt()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # gRPC tells of the end of a stream in place of a cancellation that comes with it.
                raise asyncio.CancelledError
            await asyncio.sleep(wait_s)

    async def _attempt(self) -> float:
        """Hold one stream for as long as it lasts; return how long to wait before the next."""
        asked_s = 0.0
        was_connected = asks_in_vain = False
        try:
            async with self._connect(self._controller) as call:
                await self._hold(call)
        except _EndedError as ended:
            reason, asked_s = str(ended), ended.wait_s
        except (StreamError, BaseVersionError, EnforcementError, UnenforceableError) as error:
            self._replica.distrust()
            reason = str(error)
        except HeldBackError as error:
            # The next hello tells the controller, and should do so soon. After that it is asked seldom: somebody has to repair it.
            asks_in_vain = not self._note_held_back()
            reason = str(error)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
        except TimeoutError:
            reason = "it has been silent for too long"
        except asyncio.CancelledError:
            # grpc says this of a call as well, here of one that a report could not be written to in time.
            if _is_being_cancelled():
                raise
            reason = "it does not take what it is told"
        finally:
            was_connected, self.connected = self.connected, False
        # On top of what was asked: it is the same for all that are sent away together.
        wait_s = asked_s + (self._backoff.longest_wait_s() if asks_in_vain else self._backoff.next_wait_s())
        event = "controller_lost" if was_connected else "controller_not_reached"
        log.warning(event, agent_id=self._identity.agent_id, controller=self._controller, reason=reason, retry_s=round(wait_s, 3))
        return wait_s

    async def _hold(self, call: Call) -> None:
        self._heartbeat_s = WELCOME_TIMEOUT_S / HEARTBEATS_MAX
        await self._say(call, pb.SubscribeRequest(hello=self._hello()))
        self._welcome(await self._next(call))
        reports = asyncio.create_task(self._report(call))
        try:
            while True:
                await self._handle(call, await self._next(call))
        finally:
            reports.cancel()
            self._previews.close()
            call.cancel()

    def _hello(self) -> pb.Hello:
        replica, identity = self._replica, self._identity
        hello = pb.Hello(
            agent_id=identity.agent_id,
            boot_id=identity.boot_id,
            version=identity.version,
            store_epoch=replica.resume_epoch,
            timeline_id=replica.timeline_id,
            applied_revision=replica.revision,
            held=[_object_version(key, version) for key, version in replica.held],
            state_digest=replica.held.digest,
            host=socket.gethostname(),
        )
        hello.boot_time.FromNanoseconds(identity.boot_time_ns)
        if replica.held_back is not None:
            hello.held_back.CopyFrom(held_back_message(replica.held_back))
        if hello.ByteSize() > HELLO_BYTES_MAX:
            # Whoever names nothing is told everything, and keeps what it has until that has come whole.
            log.warning("hello_shortened", objects=len(hello.held), bytes=hello.ByteSize(), bytes_max=HELLO_BYTES_MAX)
            hello.ClearField("held")
            hello.ClearField("state_digest")
            hello.ClearField("store_epoch")
        return hello

    def _welcome(self, message: pb.SubscribeResponse) -> None:
        if message.WhichOneof("message") == "go_away":
            raise _gone_away(message.go_away)
        if message.WhichOneof("message") != "welcome":
            raise StreamError("the first message is no welcome")
        welcome = message.welcome
        self._replica.welcome(welcome)
        shortest_s, longest_s = HEARTBEAT_BOUNDS_S
        self._heartbeat_s = min(max(welcome.heartbeat.ToNanoseconds() / 1e9, shortest_s), longest_s)
        self.connected = True
        log.info(
            "controller_connected",
            agent_id=self._identity.agent_id,
            controller=self._controller,
            controller_id=welcome.controller_id,
            revision=welcome.revision,
            mode=pb.SyncMode.Name(welcome.mode),
        )

    async def _handle(self, call: Call, message: pb.SubscribeResponse) -> None:
        begun_ns = self._clock()
        match message.WhichOneof("message"):
            case "update":
                applied = self._replica.update(message.update, begun_ns)
                if applied is None:
                    # Of a step that goes on: it was received, and there is room for the next part.
                    receipt = pb.Ack(applied_revision=self._replica.revision, received_nonce=message.update.nonce)
                    await self._say(call, pb.SubscribeRequest(ack=receipt))
                else:
                    await self._in_force(call, applied, begun_ns, _commit_ns(message.update))
            case "sync_point":
                await self._in_force(call, self._replica.sync_point(message.sync_point, begun_ns), begun_ns)
                self._backoff.reset()
                self._note_in_sync()
            case "bookmark":
                self._replica.bookmark(message.bookmark)
                await self._say(call, pb.SubscribeRequest(ack=pb.Ack(applied_revision=self._replica.revision)))
            case "preview_request":
                await self._previews.take(message.preview_request, partial(self._mention, call))
            case "go_away":
                raise _gone_away(message.go_away)
            case "welcome":
                raise StreamError("a second welcome")
            # What a newer controller may say besides is not for this agent.

    async def _in_force(self, call: Call, applied: Applied, begun_ns: int, commit_ns: int = 0) -> None:
        """Have what was applied saved, acknowledge and log it. It is saved whether or not the stream lives to hear of it.

        ``commit_ns`` is when the oldest change of it was committed, nanoseconds since the epoch; 0 if that does not matter.
        """
        if applied.objects:
            self._applied()
        if self._enforce is not None:
            await self._enforce()
        apply_us = (self._clock() - begun_ns) // 1000
        if applied.objects:
            self.apply_times.add(apply_us)
        if commit_ns:
            self.commit_to_in_force.add((self._time_of_day_ns() - commit_ns) // 1000)
        rejected = [
            pb.RejectedObject(object=_object_version(refused.key, refused.version), code=UNIMPLEMENTED, message=refused.message)
            for refused in applied.rejected
        ]
        ack = pb.Ack(nonce=applied.nonce, applied_revision=applied.revision, rejected=rejected, apply_micros=apply_us)
        try:
            await self._say(call, pb.SubscribeRequest(ack=ack))
        finally:
            # In force is in force, whether the controller still hears of it or not.
            self._note(applied, apply_us)

    def _note(self, applied: Applied, apply_us: int) -> None:
        agent_id = self._identity.agent_id
        # A sync point that brings nothing repeats what was said before.
        for refused in applied.rejected if applied.objects else ():
            kind, name = refused.key
            log.error(
                "object_rejected",
                agent_id=agent_id,
                kind=kind.name.lower(),
                key=name,
                version=refused.version,
                reason=refused.message,
            )
        if applied.objects:
            log.info(
                "ruleset_applied",
                agent_id=agent_id,
                revision=applied.revision,
                objects=applied.objects,
                apply_us=apply_us,
            )

    def _note_in_sync(self) -> None:
        if self._said_held_back is not None:
            self._said_held_back = None
            log.info("snapshot_no_longer_held_back", agent_id=self._identity.agent_id, revision=self._replica.revision)

    def _note_held_back(self) -> bool:
        """Say what is held back and what to do; return whether that was new."""
        held_back = self._replica.held_back
        if held_back is None:
            return False
        case = held_back.store_epoch, held_back.servers_removed, held_back.servers_held
        if case == self._said_held_back:
            return False
        self._said_held_back = case
        log.error(
            "snapshot_held_back",
            agent_id=self._identity.agent_id,
            controller=self._controller,
            store_epoch=held_back.store_epoch,
            revision=held_back.revision,
            servers_removed=held_back.servers_removed,
            servers_held=held_back.servers_held,
            max_removal=held_back.max_removal,
            revision_in_force=self._replica.revision,
            advice="bring the controller's data back; if they may go, restart this agent with a larger --max-removal or without it",
        )
        return True

    async def _report(self, call: Call) -> None:
        """Send figures each heartbeat."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            stats = self._firewall.stats(self._clock())
            denies = sum(count for reason, count in stats.verdicts.items() if reason.action is Action.DENY)
            verdicts = {f"REASON_{reason.name}": count for reason, count in stats.verdicts.items()}
            delays = self.commit_to_in_force.counted()
            histogram = pb.DelayHistogram(upper_bounds_micros=delays.bounds_us, counts=delays.counts, sum_micros=delays.sum_us)
            report = pb.Report(flows=stats.flows, denies=denies, verdicts=verdicts, commit_to_in_force=histogram)
            report.time.FromNanoseconds(self._time_of_day_ns())
            if not await self._mention(call, pb.SubscribeRequest(report=report)):
                return

    async def _next(self, call: Call) -> pb.SubscribeResponse:
        async with asyncio.timeout(HEARTBEATS_MAX * self._heartbeat_s):
            message = await call.read()
        if not isinstance(message, pb.SubscribeResponse):
            raise _EndedError(f"it ended the stream: {(await call.code()).name} {await call.details()}".strip())
        self.last_heard_ns = self._clock()
        return message

    async def _mention(self, call: Call, message: pb.SubscribeRequest) -> bool:
        """Say what the stream does not depend on; return whether that went. If not, whoever reads the stream finds out why."""
        try:
            await self._say(call, message)
        except (TimeoutError, grpc.aio.AioRpcError, _EndedError):
            return False
        return True

    async def _say(self, call: Call, message: pb.SubscribeRequest) -> None:
        async with asyncio.timeout(HEARTBEATS_MAX * self._heartbeat_s), self._writing:
            try:
                await call.write(message)
            except asyncio.InvalidStateError:
                # It ended while this waited for its turn to write.
                raise _EndedError("it ended the stream") from None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _object_version(key: tuple[int, str], version: int) -> pb.ObjectVersion:
    kind, name = key
    return pb.ObjectVersion(kind=pb.ObjectKind.ValueType(kind), key=name, version=version)


def _commit_ns(update: pb.Update) -> int:
    """Return when the oldest change of an update was committed, 0 if it says no time: for a figure no stream is given up."""
    try:
        return update.oldest_commit_time.ToNanoseconds()
    except ValueError:
        return 0


def _gone_away(message: pb.GoAway) -> _EndedError:
    wait_s = message.reconnect_after.ToNanoseconds() / 1e9
    return _EndedError(f"it said: {message.reason}", min(max(wait_s, 0), HEARTBEAT_BOUNDS_S[1]))
