"""The ways between agents and controller: who reaches whom, what is held up, and a look at everything that is said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from checks import STRANGE_PROTOCOL
from streams import Connection, Link

from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from agent_life import AgentLife, Host
    from controller_life import ControllerLife
    from world import World

_UNKNOWN_FIELD = b"\xf8\x3f\x01"  # Field 1023, varint 1: one that no program of today knows.


class Network:
    """All links and connections. ``reset_next`` says, by host, after how many messages its next connection is lost."""

    def __init__(self, world: World) -> None:
        self.links: dict[str, Link] = {}
        self.reset_next: dict[str, int] = {}
        self._world = world
        self._connections = 0
        self._open: list[Connection] = []
        self._waiting: dict[str, list[tuple[AgentLife, asyncio.Future[Connection | None]]]] = {}
        self._gone_unheard: list[Connection] = []

    def add_link(self, name: str) -> None:
        """Lay the way to a new host."""
        link = self.links[name] = Link()
        plan = self._world.plan
        link.delay_s, link.jitter_s, link.capacity = plan.delay_s, plan.jitter_s, plan.capacity

    def controller_gone(self, life: ControllerLife) -> None:
        """Let the agents of a controller that is gone find out, where word of it gets through."""
        for connection in list(self._open):
            if connection.controller is life:
                self._open.remove(connection)
                if not connection.link.down_blocked:
                    self._world.loop.later(self._world.random.random() * 0.01, connection.end_at_agent)

    def agent_gone(self, life: AgentLife) -> None:
        """Let the controller of an agent that is gone find out, when word of it gets through."""
        for connection in list(self._open):
            if connection.agent is life:
                self._open.remove(connection)
                connection.down.broken = True
                self.hung_up(connection)

    def hung_up(self, connection: Connection) -> None:
        """Let the controller find out that an agent's end is gone, when word of it gets through."""
        if connection.link.up_blocked:
            self._gone_unheard.append(connection)
        else:
            self._world.loop.later(self._world.random.random() * 0.01, connection.end_at_controller)

    def open_connections(self) -> list[Connection]:
        """Return the connections that neither end has given up."""
        self._open = [connection for connection in self._open if not connection.up.broken and not connection.down.broken]
        return self._open

    def connect(self, agent: AgentLife, outcome: asyncio.Future[Connection | None]) -> None:
        """Connect an agent, or not, a little later."""
        link = self.links[agent.host.name]
        self._world.loop.later(link.delay_s + self._world.random.random() * link.jitter_s, self._connect, agent, outcome)

    def _connect(self, agent: AgentLife, outcome: asyncio.Future[Connection | None]) -> None:
        if outcome.done() or not agent.process.alive:
            return
        link, controller = self.links[agent.host.name], self._world.seat.life
        if link.up_blocked or link.down_blocked:
            self._waiting.setdefault(agent.host.name, []).append((agent, outcome))
        elif link.refused or controller is None or not controller.serving:
            outcome.set_result(None)
        else:
            self._connections += 1
            connection = Connection(self._world.loop, link, agent, controller, self._connections)
            connection.reset_after = self.reset_next.pop(agent.host.name, None)
            self._open.append(connection)
            self._world.note("connected", agent.process.name, controller.process.name)
            controller.accept(connection)
            outcome.set_result(connection)

    def leak(self, connection: Connection) -> None:
        """Start a task in the controller that never ends."""
        self._world.count("planted")
        self._world.loop.start(connection.controller.process, asyncio.sleep(1e9))

    def block(self, host: Host, *, up: bool, down: bool, for_s: float) -> bool:
        """Hold up what goes in one direction or both."""
        link = self.links[host.name]
        link.up_blocked, link.down_blocked = link.up_blocked or up, link.down_blocked or down
        self._world.loop.later(for_s, self.heal, host)
        return True

    def heal(self, host: Host) -> None:
        link = self.links[host.name]
        link.up_blocked = link.down_blocked = link.refused = False
        for connection in self._open:
            if connection.link is link:
                connection.up.unblock()
                connection.down.unblock()
        heard = [connection for connection in self._gone_unheard if connection.link is link]
        self._gone_unheard = [connection for connection in self._gone_unheard if connection.link is not link]
        for connection in heard:
            self.hung_up(connection)
        for agent, outcome in self._waiting.pop(host.name, []):
            self._connect(agent, outcome)

    def on_up(self, connection: Connection, packed: bytes) -> list[bytes]:
        """An agent says something; return what of it goes on its way."""
        message = pb.SubscribeRequest.FromString(packed)
        kind = message.WhichOneof("message")
        life = connection.agent
        self._world.note("up", connection.number, kind, message.ack.nonce, message.ack.applied_revision)
        if kind == "hello":
            if life.agent_id in self._world.plan.windows:
                message.hello.window.messages, message.hello.window.bytes = self._world.plan.windows[life.agent_id]
            self._world.count("held back", int(message.hello.HasField("held_back")))
            self._world.checks.came(life.agent_id, self._world.seat.branch.latest.revision)
            connection.came_with = frozenset(held.key for held in message.hello.held if held.kind == pb.OBJECT_KIND_SERVER)
            connection.held_servers = set(connection.came_with)
        elif kind == "ack" and life.arriving is not None:
            # A receipt says nothing about what is in force; it is as before.
            receipt = message.ack.received_nonce and not message.ack.nonce
            self._world.checks.agent(life, life.branches if receipt else [life.arriving])
            self._world.count("rejections", len(message.ack.rejected))
        self._count_message(connection)
        return [message.SerializeToString()]

    def on_down(self, connection: Connection, packed: bytes) -> list[bytes]:
        """The controller says something; return what of it goes on its way."""
        message = pb.SubscribeResponse.FromString(packed)
        kind = message.WhichOneof("message")
        self._world.note("down", connection.number, kind, message.update.nonce, message.update.revision, message.update.more)
        self._world.checks.sent(connection, message)
        if connection.agent.agent_id in self._world.plan.old_agents:
            message = _with_unknown_fields(message)
        messages = [message] if self._world.mutate is None else list(self._world.mutate(self._world, connection, message))
        self._count_message(connection)
        return [message.SerializeToString() for message in messages]

    def _count_message(self, connection: Connection) -> None:
        connection.messages += 1
        if connection.reset_after is not None and connection.messages >= connection.reset_after:
            self._world.count("reset in flight")
            connection.reset(self._world.random.random() * 0.01, self._world.random.random() * 0.01)


def _with_unknown_fields(message: pb.SubscribeResponse) -> pb.SubscribeResponse:
    """Return a message in which rules of the strange protocol have a field that the agent's program does not know."""
    for group in message.update.groups:
        for rule in group.rules:
            if rule.spec.protocol_number == STRANGE_PROTOCOL:
                rule.MergeFromString(_UNKNOWN_FIELD)
    return message
