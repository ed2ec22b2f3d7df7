"""One life of a simulated agent: the real firewall, replica, cache, cache writer and subscription, from a start to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams import Dialling
from truth import Branch, Key, Opening, enforced
from virtual_loop import Process

from secgroups.agent.boot_time import next_boot_time_ns
from secgroups.agent.cache import FILE_NAME, LOCK_NAME, Cache
from secgroups.agent.cache_writer import CacheWriter
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Direction, Packet, Reason, TcpFlags, Verdict
from secgroups.agent.process import load
from secgroups.agent.removal_limit import RemovalLimit
from secgroups.agent.replica import Replica
from secgroups.agent.settings import EngineSettings
from secgroups.agent.subscription import Identity, Subscription
from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from streams import Connection
    from world import World

SETTINGS = EngineSettings(flows_max=512, server_flows_max=256, fragments_max=16)
FLOWS_WATCHED_MAX = 8


class Flow:
    """A TCP connection through the agent that the world watches."""

    def __init__(self, opening: Opening, remote_port: int) -> None:
        self.opening = opening
        self.remote_port = remote_port

    def packet(self, flags: TcpFlags, *, reply: bool = False) -> Packet:
        """Return a packet of the connection, in its opening direction or in the other."""
        opening = self.opening
        towards = (opening.direction == 1) is not reply
        local_port = opening.port if opening.direction == 1 else self.remote_port
        far_port = self.remote_port if opening.direction == 1 else opening.port
        return Packet(
            server=opening.server,
            direction=Direction.INGRESS if towards else Direction.EGRESS,
            source=opening.remote if towards else opening.local,
            destination=opening.local if towards else opening.remote,
            protocol=6,
            source_port=far_port if towards else local_port,
            destination_port=local_port if towards else far_port,
            tcp_flags=flags,
        )


class Host:
    """Where lives of an agent follow each other: a folder, and the flows that outlive a life if they are kept."""

    def __init__(self, agent_id: str, name: str, folder: Path) -> None:
        self.agent_id = agent_id
        self.name = name
        self.folder = folder
        folder.mkdir(parents=True)
        self.flows: Any = None
        self.watched: list[Flow] = []
        self.disk_full = False
        self.max_removal = 1.0
        self.clock_ns = 0
        self.life: AgentLife | None = None
        self.starts = 0

    def fill_disk(self, how: str) -> None:
        """Make writes of the cache fail: the next one as on a full disk, or all of them as on a broken one."""
        new = self.folder / f"{FILE_NAME}.new"
        new.unlink(missing_ok=True)
        if how == "full":
            new.symlink_to("/dev/full")
        else:
            new.mkdir()
        self.disk_full = True

    def free_disk(self) -> None:
        """Let writes succeed again."""
        if self.disk_full:
            new = self.folder / f"{FILE_NAME}.new"
            if new.is_dir():
                new.rmdir()
            else:
                new.unlink(missing_ok=True)
            self.disk_full = False

    def damage(self, how: str) -> None:
        """Do to the cache what crashes and disks do."""
        file = self.folder / FILE_NAME
        if how == "leftover":
            if not self.disk_full:
                (self.folder / f"{FILE_NAME}.new").write_bytes(b"half of a file")
            return
        if not file.exists():
            return
        content = file.read_bytes()
        match how:
            case "missing":
                file.unlink()
            case "torn":
                file.write_bytes(content[: len(content) // 2])
            case "flipped":
                at = len(content) - 1 - (len(content) // 3)
                file.write_bytes(content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])


class AgentLife:
    """A process of an agent. ``branches`` are the lines of history that what is in force may be of."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.agent_id = host.agent_id
        host.starts += 1
        self.boot_id = f"{host.name}-boot-{host.starts}"
        self.process = Process(f"{host.name}#{host.starts}")
        self.branches: list[Branch] = []
        # By line of history: the highest revision that was in force and checked.
        self.in_force: dict[int, int] = {}
        self.rejected: set[Key] = set()
        self.servers: set[str] = set()
        self._cache: Cache | None = None
        self._writer: CacheWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._arriving: Branch | None = None
        self._snapshot_comes = False

    def start(self) -> None:
        """Start the process."""
        self.world.loop.start(self.process, self._run())

    def now_ns(self) -> int:
        """Return the time that nobody sets."""
        return int(self.world.loop.time() * 1e9)

    async def _run(self) -> None:
        world, host = self.world, self.host
        self._cache = Cache(host.folder, host.agent_id)
        state = load(self._cache, host.agent_id)
        kept = host.flows if world.plan.keeps_flows else None
        self.firewall = Firewall(SETTINGS, now_ns=self.now_ns(), engine=world.plan.engine, flows=kept)
        host.flows = self.firewall.flows
        self.replica = Replica(self.firewall, RemovalLimit(host.max_removal))
        if not world.plan.keeps_flows:
            host.watched.clear()
        if state is not None:
            self.replica.restore(state.ruleset, state.store_epoch, self.now_ns(), timeline_id=state.timeline_id)
            self.branches = world.fleet.branches_of(self)
        self._writer = CacheWriter(self._cache, self.replica, interval_s=world.plan.cache_interval_s)
        self.subscription = Subscription(
            "controller",
            Identity(
                agent_id=host.agent_id,
                boot_id=self.boot_id,
                boot_time_ns=next_boot_time_ns(host.folder / LOCK_NAME, world.wall_ns(host.clock_ns)),
                version="simulated",
            ),
            self.firewall,
            self.replica,
            applied=self._applied,
            reconnect_min_s=0.2,
            reconnect_max_s=world.plan.reconnect_max_s,
            clock=self.now_ns,
            time_of_day_ns=lambda: world.wall_ns(host.clock_ns),
            connect=lambda _: Dialling(self),  # type: ignore[arg-type, return-value]
        )
        self._tasks = [asyncio.create_task(self.subscription.run()), asyncio.create_task(self._writer.run())]
        world.fleet.started(self)
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done() and not task.cancelled():
                world.fail("bug", f"{self.process.name}: {task.exception()!r} ended a task of the agent")

    def _applied(self) -> None:
        assert self._writer is not None
        self._writer.note()
        if self._snapshot_comes:
            self.world.checks.snapshot(self, self.host.max_removal)
        self._snapshot_comes = False
        if self._arriving is not None:
            self.world.checks.agent(self, [self._arriving], traffic=True)

    async def stop(self) -> None:
        """Stop as a process does that is told to; to be run in the process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            try:
                await self._writer.finish()
            except OSError:
                self.world.count("finish_failed")

    def end(self) -> None:
        """End the process where it stands: what the system does for a process that is gone."""
        self.world.loop.kill(self.process)
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    # What the world sees and does.

    @property
    def is_up(self) -> bool:
        """Whether it enforces something or could."""
        return self.process.alive and hasattr(self, "subscription")

    def about_to_take(self, connection: Connection, response: pb.SubscribeResponse) -> None:
        """Note whose history the next thing that is applied belongs to."""
        if response.WhichOneof("message") == "welcome":
            self._arriving = connection.controller.branch
            self._snapshot_comes = response.welcome.mode == pb.SYNC_MODE_SNAPSHOT

    @property
    def arriving(self) -> Branch | None:
        return self._arriving

    def objects(self) -> dict[Key, Any]:
        """Return what is in force."""
        return enforced(self.firewall.ruleset)

    def decide(self, packet: Packet) -> Verdict:
        """Send a packet through."""
        return self.firewall.decide(packet, self.now_ns())

    def open(self, flow: Flow) -> bool:
        """Open a connection with all three packets; whether that went."""
        opened = self.decide(flow.packet(TcpFlags.SYN)).reason is Reason.NEW
        if opened:
            self.decide(flow.packet(TcpFlags.SYN | TcpFlags.ACK, reply=True))
            self.decide(flow.packet(TcpFlags.ACK))
            self.host.watched.append(flow)
            del self.host.watched[:-FLOWS_WATCHED_MAX]
        return opened

    def explained(self, packet: Packet) -> Reason:
        """Return the verdict that a packet would get, without sending it."""
        return self.firewall.explain(packet, self.now_ns()).verdict.reason
