"""What tests of the engine speak: packets in one line, and a firewall with a clock and rules that can be changed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Action,
    Direction,
    Explanation,
    Fragment,
    Packet,
    QuotedPacket,
    Reason,
    TcpFlags,
    Verdict,
)
from secgroups.agent.records import RECORD_BYTES, VERDICT_BYTES, PackedVerdict, pack_many, unpack_verdict
from secgroups.agent.reference import Applied
from secgroups.agent.ruleset import AddressSet, GroupRules, Rule, RulesetUpdate, ServerBinding
from secgroups.agent.settings import EngineSettings

ALLOW, DENY = Action.ALLOW, Action.DENY
INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
FIRST, LATER = Fragment.FIRST, Fragment.LATER
SYN, ACK, FIN, RST = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.FIN, TcpFlags.RST
SYN_ACK, FIN_ACK, RST_ACK = SYN | ACK, FIN | ACK, RST | ACK
SECOND = 1_000_000_000

# The servers of all tests and their addresses; anybody else is outside.
DB, WEB = "p/db", "p/web"
ADDRESSES = {DB: ("10.0.0.9", "2001:db8::9"), WEB: ("10.0.0.5", "2001:db8::5")}
CLIENT, OTHER = "203.0.113.7", "198.51.100.1"
CLIENT6 = "2001:db8:1::7"
SERVER_OF = {address: server for server, addresses in ADDRESSES.items() for address in addresses}


def packet(
    source: str, destination: str, protocol: int, *, at: str = "", direction: Direction | None = None, **fields: object
) -> Packet:
    """Return a packet at the server that ``at`` names, else the one whose address it comes to, else that it comes from, else DB."""
    server = at or SERVER_OF.get(destination) or SERVER_OF.get(source) or DB
    if direction is None:
        direction = INGRESS if SERVER_OF.get(destination) == server else EGRESS
    made = Packet(
        server=server,
        direction=direction,
        source=ip_address(source),
        destination=ip_address(destination),
        protocol=protocol,
        length=100,
    )
    return replace(made, **fields)


def tcp(source: str, destination: str, port: int, flags: int = SYN, *, source_port: int = 40_000, **more: object) -> Packet:
    return packet(source, destination, TCP, destination_port=port, source_port=source_port, tcp_flags=flags, **more)


def udp(source: str, destination: str, port: int, *, source_port: int = 40_000, **more: object) -> Packet:
    return packet(source, destination, UDP, destination_port=port, source_port=source_port, **more)


def icmp(source: str, destination: str, icmp_type: int, *, code: int = 0, icmp_id: int = 7, **more: object) -> Packet:
    protocol = ICMPV6 if ":" in source else ICMP
    return packet(source, destination, protocol, icmp_type=icmp_type, icmp_code=code, icmp_id=icmp_id, **more)


def other(source: str, destination: str, protocol: int, **more: object) -> Packet:
    return packet(source, destination, protocol, **more)


def reply(to: Packet, **changes: object) -> Packet:
    """Return what the other end answers: ends swapped; TCP flags are those of ``to`` unless changed."""
    types = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}
    swapped = replace(
        to,
        direction=to.direction.opposite,
        source=to.destination,
        destination=to.source,
        source_port=to.destination_port,
        destination_port=to.source_port,
        icmp_type=types.get(to.icmp_type, to.icmp_type) if to.protocol in (ICMP, ICMPV6) else 0,
    )
    return replace(swapped, **changes)


def quote(of: Packet) -> QuotedPacket:
    return QuotedPacket(
        source=of.source,
        destination=of.destination,
        protocol=of.protocol,
        source_port=of.source_port,
        destination_port=of.destination_port,
        icmp_type=of.icmp_type,
        icmp_id=of.icmp_id,
    )


def error_about(of: Packet, *, source: str = "192.0.2.254", **changes: object) -> Packet:
    """Return the ICMP error that a router, or ``source``, sends to the sender of ``of``."""
    return replace(
        of,
        direction=of.direction.opposite,
        source=ip_address(source),
        destination=of.source,
        protocol=ICMP if of.source.version == 4 else ICMPV6,
        source_port=0,
        destination_port=0,
        tcp_flags=0,
        icmp_type=3 if of.source.version == 4 else 1,
        icmp_code=1,
        icmp_id=0,
        quoted=quote(of),
        **changes,
    )


def rule(
    rule_id: str,
    direction: Direction,
    protocol: int | None = None,
    ports: int | tuple[int, int] | None = None,
    remote: str | None = None,
    *,
    icmp_type: int | None = None,
    icmp_code: int | None = None,
) -> Rule:
    """Return a rule; ``remote`` is a CIDR, ``group:ID`` or None for anywhere."""
    made = None if remote is None else remote.removeprefix("group:") if remote.startswith("group:") else ip_network(remote)
    return Rule(
        id=rule_id,
        direction=direction,
        protocol=protocol,
        ports=(ports, ports) if isinstance(ports, int) else ports,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        remote=made,
    )


ANY_EGRESS = rule("a-egress", EGRESS)
SSH = rule("b-ssh", INGRESS, TCP, 22)
DNS = rule("c-dns", INGRESS, UDP, 53)
PING = rule("d-ping", INGRESS, ICMP, icmp_type=8)
PING6 = rule("e-ping6", INGRESS, ICMP, icmp_type=128)
ANY_INGRESS = rule("z-ingress", INGRESS)


class World:
    """One firewall with a clock. DB is in the group ``db``, which has ``rules``; nothing else is guarded."""

    def __init__(self, engine: str, *rules: Rule, now_s: float = 1_000, **settings: object) -> None:
        self.engine = engine
        self.settings = EngineSettings(**settings)
        self.now_ns = int(now_s * SECOND)
        self.revision = 0
        self.firewall = self.first_firewall()
        self.apply(groups=(self.group("db", *rules),), servers=(self.binding(DB, "db"),))

    def first_firewall(self) -> Firewall:
        return Firewall(self.settings, now_ns=self.now_ns, engine=self.engine)

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def apply(self, **update: object) -> Applied:
        self.revision += 1
        return self.firewall.apply(RulesetUpdate(revision=self.revision, **update), self.now_ns)

    def group(self, group_id: str, *rules: Rule, name: str = "") -> GroupRules:
        return GroupRules(group_id=group_id, version=self.revision + 1, name=name or group_id, rules=rules)

    def binding(self, server: str, *group_ids: str, addresses: tuple[str, ...] | None = None) -> ServerBinding:
        own = ADDRESSES.get(server, ()) if addresses is None else addresses
        return ServerBinding(
            server=server, version=self.revision + 1, addresses=frozenset(map(ip_address, own)), group_ids=group_ids
        )

    def members(self, group_id: str, *addresses: str) -> AddressSet:
        return AddressSet(group_id=group_id, version=self.revision + 1, members=frozenset(map(ip_address, addresses)))

    def set_rules(self, *rules: Rule, group_id: str = "db") -> Applied:
        return self.apply(groups=(self.group(group_id, *rules),))

    def bind(self, server: str, *group_ids: str, addresses: tuple[str, ...] | None = None) -> Applied:
        return self.apply(servers=(self.binding(server, *group_ids, addresses=addresses),))

    def restart(self, *, warm: bool, **settings: object) -> None:
        """Start the next firewall with everything that is in force now."""
        held = self.firewall.ruleset
        self.settings = replace(self.settings, **settings)
        flows = self.firewall.flows if warm else None
        self.firewall = Firewall(self.settings, now_ns=self.now_ns, engine=self.engine, flows=flows)
        self.apply(
            snapshot=True,
            sets=tuple(held.sets.values()),
            groups=tuple(held.groups.values()),
            servers=tuple(held.servers.values()),
        )

    def decide(self, asked: Packet) -> Verdict:
        """Return the verdict after checking that Explain, asked twice, says the same."""
        told = [self.firewall.explain(asked, self.now_ns).verdict for _ in range(2)]
        verdict = self.firewall.decide(asked, self.now_ns)
        assert told == [verdict, verdict]
        return verdict

    def explain(self, asked: Packet) -> Explanation:
        return self.firewall.explain(asked, self.now_ns)

    def reason(self, asked: Packet) -> Reason:
        return self.decide(asked).reason

    def reasons(self, *asked: Packet) -> list[str]:
        return [self.reason(each).name for each in asked]

    def connect(self, syn: Packet) -> None:
        """Complete the handshake that ``syn`` begins."""
        assert self.decide(syn).opened
        assert self.reasons(reply(syn, tcp_flags=SYN_ACK), replace(syn, tcp_flags=ACK)) == ["ESTABLISHED", "ESTABLISHED"]

    def open_answered(self, opening: Packet) -> None:
        """Open a flow and see it answered."""
        if opening.protocol == TCP:
            self.connect(opening)
            return
        assert self.decide(opening).opened
        assert self.reason(reply(opening)) is Reason.ESTABLISHED

    def flow_count(self) -> int:
        return self.firewall.stats(self.now_ns).flows


def many(world: World, records: bytes, quotes: bytes = b"") -> list[PackedVerdict]:
    """Return what ``decide_many`` of the world's firewall says of packed records."""
    verdicts = bytearray(len(records) // RECORD_BYTES * VERDICT_BYTES)
    world.firewall.decide_many(records, world.now_ns, verdicts, quotes)
    return [
        unpack_verdict(verdicts[at : at + VERDICT_BYTES], world.firewall.rule_id) for at in range(0, len(verdicts), VERDICT_BYTES)
    ]


def many_of(world: World, *asked: Packet) -> list[PackedVerdict]:
    """Pack packets into one batch and return what ``decide_many`` says of them."""
    return many(world, *pack_many(asked, world.firewall.server_handle))


def names(answers: list[PackedVerdict]) -> list[tuple[str, int]]:
    """Return the reasons of verdicts, with the rows that decided."""
    return [(answer.verdict.reason.name, answer.step) for answer in answers]
