"""A controller without sockets and agents that speak to it message by message, as slowly as a test wants."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from secgroups.agent.firewall import Firewall
from secgroups.agent.replica import Applied, Replica
from secgroups.agent.ruleset import Ruleset
from secgroups.agent.settings import EngineSettings
from secgroups.controller import operations as ops
from secgroups.controller.model import (
    ANYWHERE,
    TCP,
    Direction,
    Group,
    GroupRemote,
    Network,
    Remote,
    Rule,
    RuleSpec,
    Server,
)
from secgroups.controller.publisher import Publisher
from secgroups.controller.services.stream_wire import Wire, hello_of
from secgroups.controller.state import State
from secgroups.controller.store.interface import Pending
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.stream_messages import Ack, Kind, ObjectKey, Outbound, Rejected, SyncPoint, Update, Welcome
from secgroups.v1 import agent_service_pb2 as pb

T = TypeVar("T")
PROJECT = "p"
BEGIN_US = 1_700_000_000_000_000
# No packets are judged here.
_ENGINE = EngineSettings(flows_max=64, fragments_max=16)


class World:
    """The controller, its clock (``now_us``), and short ways to change things."""

    def __init__(self, path: Path) -> None:
        self.now_us = BEGIN_US
        self._path = path
        self._open()

    def _open(self) -> None:
        self.store = SqliteStore(self._path, durable=False, clock_us=lambda: self.now_us)
        self.state = State(self.store.load())
        self.store.begin_timeline()
        self.publisher = Publisher(self.state, self.store)
        self.wire = Wire("controller", 10.0)

    def restart(self) -> None:
        """Start the controller anew; streams are gone."""
        self.store.close()
        self._open()

    def copy(self, path: Path) -> None:
        """Write a copy of the file as it is, as a backup does."""
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)

    def restore(self, path: Path) -> None:
        """Start the controller anew on a copy that was made before."""
        self.store.close()
        for end in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        shutil.copy(path, self._path)
        self._open()

    def close(self) -> None:
        self.store.close()

    def do(self, operation: Callable[..., T], **values: Any) -> T:
        """Commit one operation of project ``p`` and tell everybody; raise what it raises."""
        (result,) = self.store.commit([Pending(lambda tx: operation(tx, project=PROJECT, **values))])
        if isinstance(result, Exception):
            raise result
        self.state.apply(result.changes)
        self.publisher.changed(result.changes)
        return result.value

    @property
    def revision(self) -> int:
        return self.state.revision

    def group(self, name: str, *specs: RuleSpec) -> Group:
        """Make a group that has these rules and no other."""
        group = self.do(ops.create_group, name=name, description="")
        self.do(ops.replace_rules, group_id=group.id, specs=specs)
        return group

    def rule(self, group: Group, spec: RuleSpec) -> Rule:
        return self.do(ops.create_rules, group_id=group.id, specs=[spec], bulk=False)[0]

    def unrule(self, rule: Rule) -> None:
        self.do(ops.delete_rule, rule_id=rule.id)

    def server(self, server_id: str, agent_id: str, groups: Sequence[Group], *addresses: str) -> Server:
        return self.do(
            ops.create_server,
            server_id=server_id,
            name="",
            addresses=[ip_address(address) for address in addresses or (address_of(server_id),)],
            agent_id=agent_id,
            group_ids=[group.id for group in groups],
        )

    def move(self, server_id: str, agent_id: str) -> Server:
        return self.do(ops.update_server, server_id=server_id, agent_id=agent_id)

    def find_group(self, group: Group) -> Group:
        """Return the group as it is now."""
        found = self.state.find_group(PROJECT, group.id)
        assert found is not None
        return found

    def lagging(self, revision: int | None = None) -> dict[str, str]:
        """Return who lags behind a revision, the newest by default, and why."""
        standing = self.publisher.in_force(self.revision if revision is None else revision)
        return {lag.agent_id: lag.reason for lag in standing.lagging}


def allow(port: int, remote: Remote | None = None, direction: Direction = Direction.INGRESS) -> RuleSpec:
    return RuleSpec(direction=direction, protocol=TCP, ports=(port, port), remote=ANYWHERE if remote is None else remote)


def members(group: Group) -> GroupRemote:
    return GroupRemote(group.id)


def address_of(server_id: str) -> str:
    """Return an address that follows from the number at the end of an id, such as s300."""
    number = int("".join(letter for letter in server_id if letter.isdigit()) or 0)
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class Agent:
    """An agent's replica and its stream, moved by hand: ``send`` puts on the wire, ``apply`` takes from it, ``ack`` acks."""

    def __init__(self, world: World, agent_id: str, boot: int = 1) -> None:
        self.world = world
        self.agent_id = agent_id
        self.boot = boot
        self.wakes = 0
        self.took: Callable[[Outbound], None] = lambda message: None
        self.cannot: set[ObjectKey] = set()
        self.sent: list[Outbound] = []
        self.inbox: list[Outbound] = []
        self._unacked: Applied | None = None
        self._received = 0
        self.window = pb.Window()
        self.start()

    def start(self) -> None:
        """Begin with nothing, as a new process without a cache."""
        self.replica = Replica(Firewall(_ENGINE, now_ns=0))
        self.saved: tuple[Ruleset, str, str] | None = None
        self.channel = None
        self.inbox.clear()

    def save(self) -> None:
        """Save what is in force, as the cache does."""
        replica = self.replica
        if replica.store_epoch:
            self.saved = (replace(replica.ruleset, revision=replica.revision), replica.store_epoch, replica.timeline_id)

    def reboot(self) -> None:
        """Begin with what was saved, as a new process with a cache."""
        self.disconnect()
        saved = self.saved
        self.start()
        self.boot += 1
        if saved is not None:
            ruleset, epoch, timeline_id = self.saved = saved
            self.replica.restore(ruleset, epoch, 0, timeline_id=timeline_id)

    def connect(self) -> Agent:
        """Open a stream; what was under way on the last one is lost."""
        replica = self.replica
        self.inbox.clear()
        self._unacked = None
        self._received = 0
        message = pb.Hello(
            agent_id=self.agent_id,
            boot_id=f"boot-{self.boot}",
            version="1",
            host="host",
            store_epoch=replica.resume_epoch,
            timeline_id=replica.timeline_id,
            applied_revision=replica.revision,
            held=[pb.ObjectVersion(kind=int(kind), key=key, version=version) for (kind, key), version in replica.held],
            state_digest=replica.held.digest,
            window=self.window,
        )
        message.boot_time.FromMicroseconds(BEGIN_US + self.boot)
        hello = hello_of(pb.SubscribeRequest(hello=message))
        self.channel = self.world.publisher.connect(hello, self._wake, self.world.now_us)
        return self

    def _wake(self) -> None:
        self.wakes += 1

    def disconnect(self) -> None:
        if self.channel is not None:
            self.world.publisher.disconnect(self.channel)
            self.channel = None

    def send(self) -> list[Outbound]:
        """Take what the controller has to say now, onto the wire."""
        assert self.channel is not None
        messages = self.channel.next_messages(self.world.now_us)
        self.sent += messages
        self.inbox += messages
        return messages

    def beat(self) -> list[Outbound]:
        """Let the controller's heartbeat pass."""
        assert self.channel is not None
        messages = self.channel.heartbeat(self.world.now_us)
        self.sent += messages
        self.inbox += messages
        return messages

    def apply(self, count: int = 1_000_000) -> None:
        """Take what is on the wire, or so many messages of it."""
        taken, self.inbox[:] = self.inbox[:count], self.inbox[count:]
        for message in taken:
            response = pb.SubscribeResponse.FromString(self.world.wire.encoded(message))
            self._spoil(response.update)
            match response.WhichOneof("message"):
                case "welcome":
                    self.replica.welcome(response.welcome)
                case "update":
                    self._received = response.update.nonce
                    self._unacked = self.replica.update(response.update, 0) or self._unacked
                case "sync_point":
                    self._received = response.sync_point.nonce
                    self._unacked = self.replica.sync_point(response.sync_point, 0)
                case "bookmark":
                    self.replica.bookmark(response.bookmark)
            self.took(message)

    def _spoil(self, update: pb.Update) -> None:
        """Make what this agent can't enforce look like something of a newer controller."""
        for made in update.sets:
            made.ipv4 += b"?" * ((Kind.SET, made.group_id) in self.cannot)
        for patch in update.set_patches:
            patch.added_ipv4 += b"?" * ((Kind.SET, patch.group_id) in self.cannot)
        for group in update.groups:
            if (Kind.GROUP, group.group_id) in self.cannot:
                group.rules.add(id="r")
        for server in update.servers:
            server.ipv4 += b"?" * ((Kind.SERVER, server.server) in self.cannot)

    def ack(self) -> None:
        """Acknowledge the last step that was applied, and all that was received."""
        if self.channel is None or not self._received:
            return
        received, self._received = self._received, 0
        applied, self._unacked = self._unacked, None
        if applied is None:
            receipt = Ack(nonce=0, applied_revision=self.replica.revision, received_nonce=received)
            self.channel.acknowledge(receipt, self.world.now_us)
            return
        rejected = tuple(
            Rejected(key=(Kind(refused.key[0]), refused.key[1]), version=refused.version, code=12, message=refused.message)
            for refused in applied.rejected
        )
        self.channel.acknowledge(
            Ack(nonce=applied.nonce, applied_revision=applied.revision, rejected=rejected, received_nonce=received),
            self.world.now_us,
        )

    def reject(self, refused: ObjectKey) -> None:
        """Apply and acknowledge what is on the wire, but for one object, which this agent can't enforce."""
        self.cannot = {refused}
        self.apply()
        self.ack()
        self.cannot = set()

    def pump(self) -> list[Outbound]:
        """Take, apply and acknowledge until the controller has nothing more to say; return what it said."""
        self.apply()
        self.ack()
        said: list[Outbound] = []
        while messages := self.send():
            said += messages
            self.apply()
            self.ack()
        return said

    def step(self) -> Update:
        """Pump, and return the one update that came."""
        (update,) = self.pump()
        assert isinstance(update, Update)
        return update

    @property
    def holds(self) -> set[str]:
        """What is in force, as "kind/key"."""
        ruleset = self.replica.ruleset
        return (
            {f"server/{key}" for key in ruleset.servers}
            | {f"group/{key}" for key in ruleset.groups}
            | {f"set/{key}" for key in ruleset.sets}
        )


def mentioned(message: Outbound) -> list[tuple[str, str]]:
    """Return what a message is about, in the order in which it stands there: ("set", id), ("-group", id) and so on."""
    if not isinstance(message, Update):
        return []
    return [
        *(("set", item.group_id) for item in message.sets),
        *(("patch", item.group_id) for item in message.set_patches),
        *(("group", item.group_id) for item in message.groups),
        *(("server", item.server) for item in message.servers),
        *(("-server", key) for key in message.removed_servers),
        *(("-group", key) for key in message.removed_groups),
        *(("-set", key) for key in message.removed_sets),
    ]


__all__ = [
    "ANYWHERE",
    "BEGIN_US",
    "PROJECT",
    "Agent",
    "Direction",
    "Kind",
    "Network",
    "SyncPoint",
    "Update",
    "Welcome",
    "World",
    "address_of",
    "allow",
    "members",
    "mentioned",
    "ops",
]
