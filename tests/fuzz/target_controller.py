"""What a hostile controller says: the agent stays alive, and what is in force is one whole state that both engines read alike.

The real subscription, replica and engine, on a loop whose time jumps; the far end says what the input decides. Mostly that fits the
stream so far, as what does not is refused at once and leads nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
from choices import Choices
from enforced import WORDS as TEXTS
from enforced import check_enforced
from scratch import scratch_folder
from virtual_loop import VirtualLoop

from secgroups.agent.cache import Cache, CachedState
from secgroups.agent.firewall import Firewall
from secgroups.agent.removal_limit import RemovalLimit
from secgroups.agent.replica import Replica
from secgroups.agent.settings import EngineSettings
from secgroups.agent.subscription import Identity, Subscription
from secgroups.v1 import agent_service_pb2 as pb

STREAMS_MAX, MESSAGES_MAX = 4, 12
_CACHE = Cache(scratch_folder(), "a")
_SETTINGS = EngineSettings(flows_max=64, fragments_max=16)
WORDS = [b"\x00", b"\x01\x01", b"\x02\x02\x02", b"\x03" * 4, b"\xff", b"\x07\x07"]
SEEDS = [*(bytes([*range(at, at + 120)]) for at in range(0, 130, 13)), bytes(8) + bytes([3, 1, 4, 1, 5, 9, 2, 6] * 20)]


class _Controller:
    """Opens streams until the input is used up; ``over`` is set then."""

    def __init__(self, choices: Choices, replica: Replica) -> None:
        self.choices = choices
        self.replica = replica
        self.over = asyncio.Event()
        self._streams = 0

    @asynccontextmanager
    async def connect(self, _: str) -> AsyncIterator[Any]:
        self._streams += 1
        if self.choices.is_over or self._streams > STREAMS_MAX:
            self.over.set()
            await asyncio.get_running_loop().create_future()
        yield _Call(self)


class _Call:
    """One stream, as far as the agent uses it."""

    def __init__(self, far_end: _Controller) -> None:
        self._choices, self._replica = far_end.choices, far_end.replica
        self._said = self._nonce = 0

    async def read(self) -> object:
        self._said += 1
        await asyncio.sleep(self._choices.pick((0, 0, 0, 0.001, 1, 40)))
        if self._choices.is_over or self._said > MESSAGES_MAX:
            return grpc.aio.EOF
        return pb.SubscribeResponse.FromString(self._message().SerializeToString())

    async def write(self, message: pb.SubscribeRequest) -> None:
        # Whatever it was told, it must be able to say what it says.
        assert message.SerializeToString()

    def cancel(self) -> None:
        """Nothing: the end of the stream is its last read."""

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    def _message(self) -> pb.SubscribeResponse:
        choices, message = self._choices, pb.SubscribeResponse()
        if choices.chance(16):
            choices.fill(message, TEXTS)
        elif self._said == 1:
            self._welcome(message.welcome)
        else:
            match choices.below(8):
                case 0 | 1 | 2 | 3:
                    self._update(message.update)
                case 4 | 5:
                    self._sync_point(message.sync_point)
                case 6:
                    message.preview_request.SetInParent()
                    choices.fill(message.preview_request, TEXTS)
                case _:
                    message.bookmark.revision = choices.number(0, (1 << 64) - 1)
        return message

    def _welcome(self, welcome: pb.Welcome) -> None:
        if self._choices.chance(2):
            self._choices.fill(welcome, TEXTS)
        welcome.mode = self._choices.pick((pb.SYNC_MODE_SNAPSHOT, pb.SYNC_MODE_DIFFERENCE, pb.SYNC_MODE_RESUMED))
        welcome.store_epoch = self._replica.store_epoch or "e1"

    def _update(self, update: pb.Update) -> None:
        choices = self._choices
        choices.fill(update, TEXTS)
        self._nonce = update.nonce = self._nonce + 1 + choices.chance(32)
        for patch in update.set_patches:
            held = self._replica.ruleset.sets.get(patch.group_id)
            if held is not None and not choices.chance(4):
                patch.base_version = held.version
        if choices.chance(2):
            # Something that means something to the packets that are looked at.
            update.servers.add(server="p/db", version=choices.below(9), ipv4=bytes([10, 0, 0, 9]), group_ids=["g1", "g2"])
            choices.fill(update.groups.add(group_id=choices.pick(("g1", "g2")), version=choices.below(9)), TEXTS)

    def _sync_point(self, point: pb.SyncPoint) -> None:
        choices, replica = self._choices, self._replica
        if choices.chance(4):
            choices.fill(point, TEXTS)
        self._nonce = point.nonce = self._nonce + 1 + choices.chance(32)
        if not choices.chance(16):
            # What a controller knows by its own count.
            step = replica._step or replica._new_step()
            point.state_digest = step.versions.digest
            point.snapshot_end = replica._snapshot_epoch is not None


def run(data: bytes) -> None:
    loop = VirtualLoop(Random(0))
    loop.run(_subscribed(Choices(data), loop))
    assert not loop.failures, loop.failures


async def _subscribed(choices: Choices, loop: VirtualLoop) -> None:
    def clock() -> int:
        return round(loop.time() * 1e9)

    firewall = Firewall(_SETTINGS, now_ns=clock())
    replica = Replica(firewall, RemovalLimit(choices.pick((1.0, 1.0, 0.5))))
    far_end = _Controller(choices, replica)
    subscription = Subscription(
        "controller",
        Identity(agent_id="a", boot_id="b", boot_time_ns=1, version="1"),
        firewall,
        replica,
        applied=lambda: None,
        reconnect_min_s=0.5,
        reconnect_max_s=30.0,
        clock=clock,
        time_of_day_ns=clock,
        connect=far_end.connect,
    )
    running = asyncio.create_task(subscription.run())
    over = asyncio.create_task(far_end.over.wait())
    await asyncio.wait([running, over], return_when=asyncio.FIRST_COMPLETED)
    for task in (running, over):
        task.cancel()
    ended, _ = await asyncio.gather(running, over, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
    check_enforced(firewall, clock())
    if replica.store_epoch:
        _check_saved(replica)


def _check_saved(replica: Replica) -> None:
    """What is in force can be saved, and is the same when it is loaded."""
    state = CachedState(store_epoch=replica.store_epoch, timeline_id=replica.timeline_id, ruleset=replica.ruleset)
    _CACHE.save(state)
    assert _CACHE.load() == state
