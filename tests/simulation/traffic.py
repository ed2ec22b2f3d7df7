"""Packets through the agents: verdicts are those of the state in force, and connections live, end and resume by it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from agent_life import AgentLife, Flow
from truth import Key, Opening, State, allows

from secgroups.agent.flow import Reason, TcpFlags

if TYPE_CHECKING:
    from world import World

_PORTS = (22, 80, 443, 5432)
_STRANGERS = tuple(map(ip_address, ("10.0.1.77", "203.0.113.9", "198.51.100.1", "fd00::1:1")))


class Traffic:
    """The packets of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self._ports_used = 0

    def _fail(self, message: str) -> None:
        self._world.fail("flows", message)

    @staticmethod
    def end_flows(life: AgentLife) -> None:
        """Forget connections whose server or address is not guarded any more: they are over, whatever comes after."""
        servers = life.firewall.ruleset.servers
        life.host.watched = [
            flow
            for flow in life.host.watched
            if flow.opening.server in servers and flow.opening.local in servers[flow.opening.server].addresses
        ]

    def send(self, life: AgentLife, state: State) -> None:
        """Send packets of the connections that there are, and ask for verdicts on others."""
        for flow in life.host.watched:
            opening = flow.opening
            if opening.server not in state.servers or self._depends_on(life.rejected, state, opening.server):
                continue
            expected = Reason.ESTABLISHED if allows(state, opening) else Reason.REVOKED
            found = life.decide(flow.packet(TcpFlags.ACK)).reason
            self._world.count(f"packet {found.name.lower()}")
            if found is not expected:
                self._fail(f"{life.process.name}: {opening} is {found.name}, should be {expected.name} at {state.revision}")
        self._try_new(life, state)

    def _try_new(self, life: AgentLife, state: State) -> None:
        servers = sorted(name for name in life.firewall.ruleset.servers if name in state.servers)
        for _ in range(2 if servers else 0):
            opening = self._some_opening(state, self._random.choice(servers))
            if opening is None or self._depends_on(life.rejected, state, opening.server):
                continue
            self._ports_used += 1
            flow = Flow(opening, 10_000 + self._ports_used % 50_000)
            expected = Reason.NEW if allows(state, opening) else Reason.NO_RULE
            found = life.explained(flow.packet(TcpFlags.SYN))
            self._world.count(f"packet {found.name.lower()}")
            if found is not expected:
                self._fail(f"{life.process.name}: {opening} is {found.name}, should be {expected.name} at {state.revision}")
            elif found is Reason.NEW and not life.open(flow):
                self._fail(f"{life.process.name}: {opening} was to be NEW and is not")

    def _some_opening(self, state: State, name: str) -> Opening | None:
        local = self._random.choice(state.servers[name].addresses)
        others = [address for key in sorted(state.servers) for address in state.servers[key].addresses]
        remotes = [address for address in (*others, *_STRANGERS) if address.version == local.version and address != local]
        if not remotes:
            return None
        return Opening(name, self._random.choice((1, 1, 2)), local, self._random.choice(remotes), self._random.choice(_PORTS))

    @staticmethod
    def _depends_on(rejected: set[Key], state: State, name: str) -> bool:
        return any(kind != "server" or key == name for kind, key in rejected) and bool(rejected)
