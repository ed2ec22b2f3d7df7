"""An enforcer and an engine that are given the same rules and asked about the same packets."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from frames import frame
from netns import PROBE_WAIT_S, World

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Action, Direction, Packet, Reason, Verdict
from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.kernel.nft import Nft
from secgroups.agent.kernel.settings import KernelSettings
from secgroups.agent.ruleset import AddressSet, GroupRules, Network, Rule, Ruleset, RulesetUpdate, ServerBinding

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
WEB, DB = "p/web", "p/db"
HOST_OF = {"10.0.0.9": "web", "2001:db8::9": "web", "10.0.0.5": "db", "2001:db8::5": "db"}
ADDRESSES = {WEB: ("10.0.0.9", "2001:db8::9"), DB: ("10.0.0.5", "2001:db8::5")}
SERVER_OF = {address: server for server, addresses in ADDRESSES.items() for address in addresses}


def allow(
    rule_id: str,
    direction: Direction = INGRESS,
    *,
    protocol: int | None = None,
    ports: int | tuple[int, int] | None = None,
    network: str = "",
    group: str = "",
    icmp: tuple[int, int | None] | None = None,
) -> Rule:
    """Return a rule; without ``network`` and ``group`` it is about anywhere."""
    remote: Network | str | None = ip_network(network) if network else group or None
    return Rule(
        id=rule_id,
        direction=direction,
        protocol=protocol,
        ports=(ports, ports) if isinstance(ports, int) else ports,
        icmp_type=icmp[0] if icmp else None,
        icmp_code=icmp[1] if icmp else None,
        remote=remote,
    )


class Rig:
    """``change`` says what is to be in force, for both; ``agree`` sends a packet and compares."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.enforcer = KernelEnforcer(KernelSettings())
        self.firewall = Firewall(now_ns=0)
        self.now_ns = 0
        self._ruleset = Ruleset()
        self._started = False
        subprocess.run(["conntrack", "-F"], capture_output=True)

    async def close(self) -> None:
        await self.enforcer.stop()
        await self.enforcer.clean_up()

    def settings(self, settings: KernelSettings, nft: Nft | None = None) -> None:
        """Work with other settings; before the first change."""
        self.enforcer = KernelEnforcer(settings, nft)

    async def change(
        self,
        *,
        groups: dict[str, Iterable[Rule]] | None = None,
        servers: dict[str, Iterable[str]] | None = None,
        members: dict[str, Iterable[str]] | None = None,
        gone: Iterable[str] = (),
        addresses: dict[str, Iterable[str]] | None = None,
    ) -> None:
        """Put in force: rules by group, groups by server, members by group, servers that go; addresses other than the usual."""
        revision = self._ruleset.revision + 1
        where = {server: tuple(given) for server, given in (addresses or {}).items()}
        update = RulesetUpdate(
            revision=revision,
            snapshot=revision == 1,
            groups=tuple(
                GroupRules(group_id=name, version=revision, name=name, rules=tuple(rules)) for name, rules in (groups or {}).items()
            ),
            servers=tuple(
                ServerBinding(
                    server=server,
                    version=revision,
                    addresses=frozenset(map(ip_address, where.get(server, ADDRESSES.get(server, ())))),
                    group_ids=tuple(names),
                )
                for server, names in (servers or {}).items()
            ),
            sets=tuple(
                AddressSet(group_id=name, version=revision, members=frozenset(map(ip_address, held)))
                for name, held in (members or {}).items()
            ),
            removed_servers=tuple(gone),
        )
        self.firewall.apply(update, self.now_ns)
        self._ruleset = self.firewall.ruleset
        if self._started:
            await self.enforcer.apply(self._ruleset)
        else:
            self._started = True
            await self.enforcer.start(self._ruleset)

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    async def stamped(self) -> None:
        """Wait until connections are stamped."""
        await until(lambda: self.enforcer.stamps, "epochs are given")

    def expected(self, packet: Packet) -> list[Verdict]:
        """Return the engine's verdicts: of the server it leaves, and if that lets it go, of the server it comes to."""
        verdicts = []
        for address, direction in ((packet.source, EGRESS), (packet.destination, INGRESS)):
            server = SERVER_OF.get(str(address))
            if server in self._ruleset.servers:
                verdicts.append(self.firewall.decide(replace(packet, server=server, direction=direction), self.now_ns))
                if verdicts[-1].action is Action.DENY:
                    break
        return verdicts

    def passes(self, packet: Packet, *, data: bytes = b"") -> bool:
        """Send it; return whether it arrives."""
        source, destination = (HOST_OF.get(str(address), "client") for address in (packet.source, packet.destination))
        return self.world.passes(source, frame(packet, data), destination)

    def agree(self, packet: Packet) -> bool:
        """Send it; AssertionError if the kernel and the engine differ. Returns whether it passed."""
        verdicts = self.expected(packet)
        passed = self.passes(packet)
        allowed = all(verdict.action is Action.ALLOW for verdict in verdicts)
        if packet.quoted is not None and allowed and not passed:
            # A listed difference: what is about a connection gets what that gets from both its ends, whatever rules say of ICMP.
            between_servers = {str(packet.quoted.source), str(packet.quoted.destination)} <= SERVER_OF.keys()
            if between_servers or any(verdict.reason is Reason.NEW for verdict in verdicts):
                return False
        assert passed is allowed, f"the kernel {'passed' if passed else 'dropped'} {packet}, the engine says {verdicts}"
        return passed


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition; AssertionError if it does not come."""
    try:
        async with asyncio.timeout(PROBE_WAIT_S):
            while not holds():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {PROBE_WAIT_S:.0f} s") from None
