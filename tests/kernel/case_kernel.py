"""Policy cases with real packets: what the engine judges in a step goes through the kernel as well, and both must say the same.

Each server has an interface of its own. ``Difference`` is the closed list of why a packet is not sent, or may fare otherwise: the
README's table, and what no router can be made to carry.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from frames import frame
from rig import until
from tunnels import OUTSIDE, Router, interface

from secgroups.agent.flow import Direction, Fragment, Packet, Reason
from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.kernel.settings import KernelSettings
from secgroups.agent.ruleset import Ruleset
from secgroups.lab.cases.judging import Judgement
from secgroups.lab.cases.model import AddServer, Advance, Case, Name, Ref, RestartAgent, Step, Traffic
from secgroups.lab.cases.runner import CaseRun
from secgroups.lab.cases.traffic import Judge, is_group_address


class Difference(Enum):
    """Why a packet of a case is not sent, or fares otherwise in the kernel."""

    TIME = "the clock of conntrack can't be set"
    BOUNDS = "conntrack's bounds are for the whole host"
    MID_STREAM = "TCP in mid-stream is never taken up"
    FRAGMENTS = "fragments are put together before they are judged"
    PROJECTS = "projects can't use the same address on one host"
    NOT_ROUTED = "multicast, broadcast, link-local and unspecified addresses are not routed"
    FAMILIES = "no packet has addresses of two families"
    TWO_JUDGES = "its other end is a server of this host too, which judges it as well"
    LOST_ADDRESS = "flows on an address that a server loses are judged by the rules of whoever has the address next"
    REVOKED = "packets of a revoked flow that are dropped move its state on"
    CODE = "pings are told apart by their code too"
    ICMP_ERRORS = "an ICMP error about a connection gets what that gets, whatever rules say of ICMP"


# What comes after one of these in a case meets other flows in the kernel than in the engine.
ENDS = {Difference.TIME, Difference.BOUNDS, Difference.MID_STREAM, Difference.FRAGMENTS, Difference.PROJECTS}


@dataclass
class Played:
    """What became of a case: packets that both judged, what was not sent, and where they differed, by number of step."""

    packets: int = 0
    not_sent: dict[int, Difference] = field(default_factory=dict)
    differing: dict[int, str] = field(default_factory=dict)


class CaseKernel:
    """The enforcer in the router for one case; ``close`` leaves the router as it was. To be used inside its namespace."""

    def __init__(self, router: Router, case: Case) -> None:
        names = {_name(setup.server, case) for setup in case.servers}
        names |= {_name(step.action.setup.server, case) for step in case.steps if isinstance(step.action, AddServer)}
        self._ports = {str(name): interface(number) for number, name in enumerate(sorted(names, key=str))}
        essential = case.settings.essential_services
        self._settings = KernelSettings(essential_services=essential is not False, ports=self._ports)
        self._router = router
        self._loop = asyncio.Runner()
        self._enforcer: KernelEnforcer | None = None
        self._ruleset = Ruleset()

    def close(self) -> None:
        async def end() -> None:
            if self._enforcer is not None:
                await self._enforcer.stop()
                await self._enforcer.clean_up()

        try:
            self._loop.run(end())
        finally:
            self._loop.close()
            self._router.route({})
            _forget_connections()

    def enforce(self, ruleset: Ruleset) -> None:
        """Put what the engine has in force into the kernel, and the servers behind their interfaces."""
        if ruleset is self._ruleset:
            return
        self._ruleset = ruleset
        self._router.route(self._routes())
        self._loop.run(self._start() if self._enforcer is None else self._enforcer.apply(ruleset))

    def restart(self, *, warm: bool) -> None:
        """Have another agent take over; cold is as after a boot of the host: connections and tables are gone."""
        if self._enforcer is None:
            return
        self._loop.run(self._enforcer.stop())
        if not warm:
            self._loop.run(self._enforcer.clean_up())
            _forget_connections()
        self._loop.run(self._start())

    async def _start(self) -> None:
        self._enforcer = KernelEnforcer(self._settings)
        await self._enforcer.start(self._ruleset)
        await until(lambda: self._enforcer is not None and self._enforcer.stamps, "epochs are given")

    @property
    def has_shared_addresses(self) -> bool:
        addresses = [address for binding in self._ruleset.servers.values() for address in binding.addresses]
        return len(addresses) != len(set(addresses))

    def owner(self, packet: Packet, judge: Judge) -> str:
        """Return the server other than the judge's that has the far end's address, empty if none has."""
        far = packet.destination if judge.direction is Direction.EGRESS else packet.source
        owners = (server for server, binding in self._ruleset.servers.items() if far in binding.addresses)
        return next((server for server in owners if server != str(judge.server)), "")

    def passes(self, packet: Packet, judges: Sequence[Judge]) -> bool:
        """Send a packet from where the first judge's direction has it come from; return whether it gets past all of them."""
        first, last = judges[0], judges[-1]
        source = self._ports[str(first.server)] if first.direction is Direction.EGRESS else OUTSIDE
        if last.direction is Direction.EGRESS:
            return bool(self._router.arrivals(source, frame(packet)))
        port = self._ports[str(last.server)]
        self._router.route(self._routes() | {packet.destination: port})
        try:
            return port in self._router.arrivals(source, frame(packet))
        finally:
            self._router.route(self._routes())

    def _routes(self) -> dict[object, str]:
        return {address: self._ports[server] for server, binding in self._ruleset.servers.items() for address in binding.addresses}


class KernelRun(CaseRun):
    """A run in which each packet goes through the kernel too."""

    def attach(self, kernel: CaseKernel) -> Played:
        """Begin to compare; return what will have become of the case when it has been run."""
        self._kernel = kernel
        self._step = 0
        self._ended: Difference | None = None
        self.played = Played()
        settings = self.case.settings
        if settings.flows_max or settings.server_flows_max:
            self._ended = Difference.BOUNDS
        elif settings.tcp_loose_s:
            self._ended = Difference.MID_STREAM
        return self.played

    def run_step(self, step: Step) -> None:
        self._step = step.number
        self._enforce()
        super().run_step(step)
        if isinstance(step.action, Traffic):
            return
        if isinstance(step.action, Advance):
            self._ended = self._ended or Difference.TIME
        elif isinstance(step.action, RestartAgent):
            self._kernel.restart(warm=step.action.warm)
        self._enforce()

    def pass_packet(self, packet: Packet, judges: Sequence[Judge]) -> Judgement:
        judgement = super().pass_packet(packet, judges)
        why_not = self._ended or self._not_sent(packet, judges, judgement)
        if why_not is not None:
            self.played.not_sent[self._step] = why_not
            self._ended = why_not if why_not in ENDS else None
            return judgement
        self.played.packets += 1
        passed = self._kernel.passes(packet, judges)
        if passed is not judgement.allowed:
            self.played.differing[self._step] = f"the kernel {'passed' if passed else 'dropped'} {packet}, the engine: {judgement}"
        return judgement

    def _enforce(self) -> None:
        self._kernel.enforce(self.world.holdings().enforced)
        if self._kernel.has_shared_addresses:
            self._ended = self._ended or Difference.PROJECTS

    def _not_sent(self, packet: Packet, judges: Sequence[Judge], judgement: Judgement) -> Difference | None:
        if packet.source.version != packet.destination.version:
            return Difference.FAMILIES
        if packet.fragment is not Fragment.NONE:
            return Difference.FRAGMENTS
        ends = (packet.source, packet.destination)
        if is_group_address(packet.destination) or any(each.is_link_local or each.is_unspecified for each in ends):
            return Difference.NOT_ROUTED
        if len(judges) == 1 and self._kernel.owner(packet, judges[0]):
            return Difference.TWO_JUDGES
        if packet.quoted is not None and judgement.verdict.reason is Reason.NEW:
            return Difference.ICMP_ERRORS
        return None


def _name(server: Ref, case: Case) -> Name:
    return Name(server.project or case.project, server.name)


def _forget_connections() -> None:
    subprocess.run(["conntrack", "-F"], capture_output=True, check=True, timeout=60)
