"""What a hostile agent says on its stream: refused in words, or taken; its figures can be shown, and other agents are served.

The real stream, publisher and state, on a loop whose time jumps; the store was written before, and its changes are told again to
each new publisher.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from random import Random

import grpc
from choices import Choices
from enforced import WORDS as TEXTS
from scratch import scratch_folder
from stream_world import Agent, World, allow, members, ops
from virtual_loop import VirtualLoop

from secgroups.controller.clocks import Clocks
from secgroups.controller.errors import InvalidError
from secgroups.controller.metrics import Counts
from secgroups.controller.model import Change
from secgroups.controller.publisher import Publisher
from secgroups.controller.services.agent_stream import AgentStream
from secgroups.controller.services.pace import Pace
from secgroups.controller.services.stream_wire import Wire, held_back_message, rejected_message, report_message
from secgroups.controller.state import State
from secgroups.controller.store.interface import Contents, Pending
from secgroups.controller.stream_settings import StreamSettings
from secgroups.v1 import agent_service_pb2 as pb

MESSAGES_MAX = 24
REASONS = ["REASON_NEW", "REASON_NO_RULE", "REASON_NOBODY", ""]
WORDS = [b"\x00", b"\x01\x01", b"\x02\x02\x02", b"\x03" * 4, b"\xff", b"\x07\x07"]
SEEDS = [*(bytes([*range(at, at + 120)]) for at in range(0, 130, 13)), bytes(8) + bytes([3, 1, 4, 1, 5, 9, 2, 6] * 20)]


class _Site:
    """A store with two agents' servers, and what changed after it was read."""

    def __init__(self) -> None:
        self.world = world = World(scratch_folder() / "secgroups.db")
        db, web = world.group("db", allow(5432)), world.group("web", allow(80))
        world.rule(db, allow(22, members(web)))
        world.server("s1", "a1", [db])
        world.server("s2", "a2", [web])
        self.texts = [*TEXTS, db.id, web.id, "p/s1", "p/s2", "a1", "a2", world.store.store_epoch]
        self.contents: Contents = world.store.load()
        new = {"server_id": "s3", "name": "", "addresses": [ip_address("10.0.0.3")], "agent_id": "a2", "group_ids": [web.id]}
        changing = (
            lambda tx: ops.replace_rules(tx, project="p", group_id=db.id, specs=[allow(1), allow(2, members(web))]),
            lambda tx: ops.update_server(tx, project="p", server_id="s2", agent_id="a1"),
            lambda tx: ops.create_server(tx, project="p", **new),
            lambda tx: ops.update_server(tx, project="p", server_id="s1", agent_id="a2"),
            lambda tx: ops.delete_server(tx, project="p", server_id="s2"),
            lambda tx: ops.replace_rules(tx, project="p", group_id=db.id, specs=[]),
        )
        self.changes: list[list[Change]] = []
        for operation in changing:
            (result,) = world.store.commit([Pending(operation)])
            if isinstance(result, Exception):
                raise result
            self.changes.append(list(result.changes))

    def begin(self) -> None:
        """Have the world know what was read, and nobody connected."""
        self.world.state = State(self.contents)
        self.world.publisher = Publisher(self.world.state, self.world.store)


_SITE = _Site()


class _Agent:
    """The far end of a stream, as far as the controller uses it; what it says follows from the input."""

    def __init__(self, choices: Choices, site: _Site) -> None:
        self._choices, self._site = choices, site
        self._said = self._changed = self._nonce = self._ended = self._revision = 0

    async def read(self) -> object:
        self._said += 1
        await asyncio.sleep(self._choices.pick((0, 0, 0, 0.001, 0.1, 12)))
        if self._choices.chance(4):
            self._change()
        if self._choices.is_over or self._said > MESSAGES_MAX:
            return grpc.aio.EOF
        if self._choices.chance(64):
            return self._choices.take(20)
        return self._message().SerializeToString()

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(self._choices.pick((0, 0, 0, 0.01, 1)))
        told = pb.SubscribeResponse.FromString(message)
        self._nonce = told.update.nonce or told.sync_point.nonce or self._nonce
        if (told.HasField("update") and not told.update.more) or told.HasField("sync_point"):
            self._ended = self._nonce
        self._revision = told.update.revision or told.sync_point.revision or told.bookmark.revision or self._revision

    def _change(self) -> None:
        """Tell the controller's streams what is committed next."""
        if self._changed < len(self._site.changes):
            changes = self._site.changes[self._changed]
            self._changed += 1
            self._site.world.state.apply(changes)
            self._site.world.publisher.changed(changes)

    def _message(self) -> pb.SubscribeRequest:
        choices, message = self._choices, pb.SubscribeRequest()
        if choices.chance(16):
            choices.fill(message, self._site.texts)
        elif self._said == 1:
            self._hello(message.hello)
        else:
            match choices.below(8):
                case 0 | 1 | 2 | 3:
                    self._ack(message.ack)
                case 4 | 5:
                    message.report.SetInParent()
                    choices.fill(message.report, REASONS)
                case 6:
                    message.preview_result.SetInParent()
                    choices.fill(message.preview_result, self._site.texts)
                case _:
                    choices.fill(message, self._site.texts)
        return message

    def _hello(self, hello: pb.Hello) -> None:
        choices = self._choices
        choices.fill(hello, self._site.texts)
        if not choices.chance(16):
            hello.agent_id, hello.boot_id = choices.pick(("a1", "a2", "a3")), "boot"
        if choices.chance(2):
            hello.store_epoch = self._site.world.store.store_epoch
            hello.applied_revision = choices.below(self._site.world.state.revision + 2)

    def _ack(self, ack: pb.Ack) -> None:
        choices = self._choices
        if choices.chance(3):
            choices.fill(ack, self._site.texts)
        if not choices.chance(8):
            ack.nonce, ack.received_nonce = self._ended if choices.chance(2) else 0, self._nonce
            ack.applied_revision = self._revision


def run(data: bytes) -> None:
    loop = VirtualLoop(Random(0))
    loop.run(_served(Choices(data), loop))
    assert not loop.failures, loop.failures


async def _served(choices: Choices, loop: VirtualLoop) -> None:
    def clock() -> int:
        return round(loop.time() * 1e9)

    _SITE.begin()
    world, clocks = _SITE.world, Clocks(time_of_day_ns=clock, monotonic_ns=clock)
    neighbour = Agent(world, "a2").connect()
    neighbour.pump()
    far_end, wire = _Agent(choices, _SITE), Wire("controller", 10.0)
    stream = AgentStream(far_end, world.publisher, wire, StreamSettings(), Pace(clocks=clocks), clocks, Counts())
    try:
        await stream.run()
    except InvalidError as error:
        assert error.violations
    _check_shown(world.publisher)
    # The neighbour goes on, unless somebody came in its name; whoever comes later in the other's has what is its own.
    if neighbour.channel is not None and not neighbour.channel.ending_reason:
        neighbour.pump()
    later = Agent(world, "a1", boot=1 << 40).connect()
    later.pump()
    assert {server.key for server in world.state.servers("p") if server.agent_id == "a1"} <= set(later.replica.ruleset.servers)


def _check_shown(publisher: Publisher) -> None:
    """What is known of the agents can be told."""
    for agent_id in publisher.agent_ids():
        status = publisher.find_status(agent_id)
        assert status is not None
        pb.Agent(
            id=status.agent_id,
            boot_id=status.boot_id,
            version=status.version,
            host=status.host,
            applied_revision=status.applied_revision,
            pending_revisions=status.pending_revisions,
            rejected=[rejected_message(rejected) for rejected in status.rejected],
            report=None if status.report is None else report_message(status.report),
            held_back=None if status.held_back is None else held_back_message(status.held_back),
        ).SerializeToString()
    publisher.fleet()
    publisher.in_force(1)
