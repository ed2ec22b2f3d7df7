"""What goes over the wire in a case: conversations, their packets in both directions, and at which servers each is judged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    TCP,
    UDP,
    Direction,
    Fragment,
    Packet,
    QuotedPacket,
    TcpFlags,
)
from secgroups.lab.cases.model import Address, AddressEnd, End, Flow, FlowPacket, LoosePacket, Name, Protocol, ServerEnd
from secgroups.lab.cases.roster import Party, Roster, UnclearError, is_server

# Which reply answers which request (RFC 792, RFC 4443, RFC 4620).
REPLY_OF = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}

# What a flow or packet gets where the file does not say; see the table of verbs.
_ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}
_UNREACHABLE = {ICMP: 3, ICMPV6: 1}

# All fragments without ``ip_id`` are of one packet, so that a first and a later one meet.
_IP_ID = 1

_FIRST_PORT, _LAST_PORT = 40_000, 65_535
# Whether the opener sends it, and its flags.
_HANDSHAKE = ((True, TcpFlags.SYN), (False, TcpFlags.SYN | TcpFlags.ACK), (True, TcpFlags.ACK))


@dataclass(frozen=True, slots=True)
class Judge:
    """A server that judges a packet, and which way the packet goes there."""

    server: Name
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A flow as both ends know it. ``judge`` is set where one server alone judges, with the direction of the opening packet."""

    opener: Party
    responder: Party
    protocol: int
    opener_port: int = 0
    responder_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    icmp_id: int = 0
    judge: Judge | None = None

    @property
    def is_icmp(self) -> bool:
        return self.protocol in (ICMP, ICMPV6)

    @property
    def has_answer(self) -> bool:
        """False where there is nothing that could answer: a multicast or broadcast destination, an ICMP type without a reply."""
        return not (is_group_address(self.responder.address) or (self.is_icmp and self.icmp_type not in REPLY_OF))

    def is_opener(self, sender: End, roster: Roster) -> bool:
        """Return whether ``sender`` is the end that opened it. UnclearError if it is neither end."""
        for party, opens in ((self.opener, True), (self.responder, False)):
            if isinstance(sender, ServerEnd):
                if party.server == roster.server(sender.server) and sender.address in (None, party.address):
                    return opens
            elif party.address == sender.address:
                if party.server is not None and self.judge is None:
                    raise UnclearError("from", f"{sender} is an end that belongs to server {party.server.name}: write it so")
                return opens
        raise UnclearError("from", f"{sender} is not an end of the flow")

    def ends(self, from_opener: bool) -> tuple[Party, Party]:
        """Return sender and receiver of a packet."""
        return (self.opener, self.responder) if from_opener else (self.responder, self.opener)

    def packet(self, from_opener: bool, flags: int = 0) -> Packet:
        """Return a packet of it, with no server yet."""
        sender, receiver = self.ends(from_opener)
        ports = (self.opener_port, self.responder_port)
        return Packet(
            server="",
            direction=Direction.EGRESS,
            source=sender.address,
            destination=receiver.address,
            protocol=self.protocol,
            source_port=ports[0] if from_opener else ports[1],
            destination_port=ports[1] if from_opener else ports[0],
            tcp_flags=flags,
            icmp_type=self.icmp_type if from_opener else REPLY_OF.get(self.icmp_type, self.icmp_type),
            icmp_code=self.icmp_code if from_opener else 0,
            icmp_id=self.icmp_id,
        )

    def exchange(self) -> list[tuple[bool, Packet]]:
        """Return the opening packet and what answers it, each with whether the opener sends it."""
        if self.protocol == TCP:
            return [(from_opener, self.packet(from_opener, flags)) for from_opener, flags in _HANDSHAKE]
        return [(True, self.packet(True)), *([(False, self.packet(False))] if self.has_answer else [])]

    def judges(self, from_opener: bool) -> list[Judge]:
        """Return who judges a packet, in the order in which it passes them."""
        if self.judge is not None:
            direction = self.judge.direction if from_opener else self.judge.direction.opposite
            return [Judge(self.judge.server, direction)]
        sender, receiver = self.ends(from_opener)
        return judges_between(sender, receiver)


def judges_between(sender: Party, receiver: Party) -> list[Judge]:
    """Return who judges: the sender's server, then the receiver's."""
    egress = [Judge(sender.server, Direction.EGRESS)] if sender.server else []
    ingress = [Judge(receiver.server, Direction.INGRESS)] if receiver.server else []
    return egress + ingress


@dataclass
class Numbers:
    """Source ports and ICMP identifiers that no step of the case has used yet."""

    used: set[int] = field(default_factory=set)
    last: int = _FIRST_PORT

    def take(self, given: int | None) -> int:
        """Return ``given`` and remember it, or a new one."""
        if given is None:
            for _ in range(_LAST_PORT - _FIRST_PORT + 1):
                self.last = self.last + 1 if self.last < _LAST_PORT else _FIRST_PORT
                if self.last not in self.used:
                    break
            given = self.last
        self.used.add(given)
        return given


def conversation_of(flow: Flow, roster: Roster, numbers: Numbers) -> Conversation:
    """Return the conversation that a flow step starts. UnclearError if the step can't be what it says."""
    opener, responder = roster.parties(flow.source, flow.destination)
    judge = _judge_of(flow, opener, responder, roster)
    if judge is not None:
        opener, responder = _with_judge(judge, opener, responder)
    protocol = protocol_number(flow.protocol, responder.address)
    _check_fields(flow, protocol, ports_needed=protocol in PROTOCOLS_WITH_PORTS)
    return Conversation(
        opener=opener,
        responder=responder,
        protocol=protocol,
        opener_port=numbers.take(flow.source_port) if protocol in PROTOCOLS_WITH_PORTS else 0,
        responder_port=flow.port or 0,
        icmp_type=_ECHO_REQUEST.get(protocol, 0) if flow.icmp_type is None else flow.icmp_type,
        icmp_code=flow.icmp_code or 0,
        icmp_id=numbers.take(flow.icmp_id) if protocol in _ECHO_REQUEST else 0,
        judge=judge,
    )


def flow_packet(step: FlowPacket, conversation: Conversation, roster: Roster) -> tuple[Packet, list[Judge]]:
    """Return one more packet of a conversation and who judges it. UnclearError if the step can't be what it says."""
    from_opener = conversation.is_opener(step.sender, roster)
    if step.tcp_flags is not None and conversation.protocol != TCP:
        raise UnclearError("tcp_flags", "only TCP has flags")
    flags = 0
    if conversation.protocol == TCP:
        flags = flags_of(("ack",) if step.tcp_flags is None else step.tcp_flags)
    packet = fragmented(conversation.packet(from_opener, flags), step.fragment, step.ip_id)
    if step.at is None and step.direction is None:
        return packet, conversation.judges(from_opener)
    sender, receiver = (
        (conversation.opener, conversation.responder) if from_opener else (conversation.responder, conversation.opener)
    )
    judge = _judge_of(step, sender, receiver, roster)
    return packet, [judge] if judge else conversation.judges(from_opener)


def loose_packet(step: LoosePacket, quoted: Conversation | None, roster: Roster, numbers: Numbers) -> tuple[Packet, list[Judge]]:
    """Return a packet out of the blue and who judges it. UnclearError if the step can't be what it says."""
    source, destination = step.source, step.destination
    if quoted is not None:
        source, destination = (_as_in(quoted, end, roster) for end in (source, destination))
    sender, receiver = roster.parties(source, destination)
    judge = _judge_of(step, sender, receiver, roster)
    protocol = protocol_number(step.protocol, receiver.address)
    has_ports = protocol in PROTOCOLS_WITH_PORTS
    _check_fields(step, protocol, ports_needed=has_ports and step.fragment != "later")
    if quoted is not None and protocol not in _ECHO_REQUEST:
        raise UnclearError("quotes", "only an ICMP error quotes a packet")
    types = _ECHO_REQUEST if quoted is None else _UNREACHABLE
    packet = Packet(
        server="",
        direction=Direction.EGRESS,
        source=sender.address,
        destination=receiver.address,
        protocol=protocol,
        source_port=numbers.take(step.source_port) if has_ports else 0,
        destination_port=step.port or 0,
        tcp_flags=flags_of(step.tcp_flags or ()),
        icmp_type=types.get(protocol, 0) if step.icmp_type is None else step.icmp_type,
        icmp_code=step.icmp_code or 0,
        icmp_id=_error_id(step, quoted, numbers) if protocol in _ECHO_REQUEST else 0,
        quoted=None if quoted is None else _quoted(quoted, receiver),
    )
    return fragmented(packet, step.fragment, step.ip_id), [judge] if judge else judges_between(sender, receiver)


def protocol_number(protocol: Protocol | int, address: Address) -> int:
    """Return the IANA number; the word ICMP means ICMPv6 between IPv6 addresses."""
    if isinstance(protocol, int):
        return protocol
    if protocol is Protocol.ICMP:
        return ICMP if address.version == 4 else ICMPV6
    return {Protocol.TCP: TCP, Protocol.UDP: UDP}[protocol]


def flags_of(names: tuple[str, ...]) -> int:
    """Return the flags as a number."""
    return sum(TcpFlags[name.upper()] for name in set(names))


def fragmented(packet: Packet, fragment: str | None, ip_id: int | None) -> Packet:
    """Return the packet as a first or later fragment; a later one has no header above IP."""
    fragment_id = _IP_ID if ip_id is None else ip_id
    if fragment is None:
        return packet if ip_id is None else replace(packet, fragment_id=fragment_id)
    if fragment == "first":
        return replace(packet, fragment=Fragment.FIRST, fragment_id=fragment_id)
    bare = replace(packet, source_port=0, destination_port=0, tcp_flags=0, icmp_type=0, icmp_code=0, icmp_id=0, quoted=None)
    return replace(bare, fragment=Fragment.LATER, fragment_id=fragment_id)


def is_group_address(address: Address) -> bool:
    """True for multicast and 255.255.255.255."""
    return address.is_multicast or str(address) == "255.255.255.255"


def _error_id(step: LoosePacket, quoted: Conversation | None, numbers: Numbers) -> int:
    return step.icmp_id or 0 if quoted is not None else numbers.take(step.icmp_id)


def _quoted(conversation: Conversation, receiver: Party) -> QuotedPacket:
    """The packet of the conversation that the error's receiver had sent: its answer, or the opening packet."""
    answer = receiver.address == conversation.responder.address and receiver.address != conversation.opener.address
    sent = conversation.packet(from_opener=not answer)
    return QuotedPacket(
        source=sent.source,
        destination=sent.destination,
        protocol=sent.protocol,
        source_port=sent.source_port,
        destination_port=sent.destination_port,
        icmp_type=sent.icmp_type,
        icmp_id=sent.icmp_id,
    )


def _as_in(conversation: Conversation, end: End, roster: Roster) -> End:
    """A server of several addresses that is an end of the conversation speaks from the address it has there."""
    if isinstance(end, ServerEnd) and end.address is None:
        for party in (conversation.opener, conversation.responder):
            if party.server == roster.server(end.server):
                return ServerEnd(end.server, party.address)
    return end


def _judge_of(step: Flow | FlowPacket | LoosePacket, sender: Party, receiver: Party, roster: Roster) -> Judge | None:
    """Who alone judges, if the step says so. UnclearError if it can't be told, or if nobody would judge."""
    wanted = None if step.direction is None else Direction[step.direction.upper()]
    if step.at is not None:
        server = roster.past_or_present("at", step.at)
        return Judge(server, wanted or _direction_at(server, sender, receiver, roster))
    if not isinstance(step, FlowPacket):
        _check_no_server_address(step, roster)
    if wanted is None:
        return None
    between = judges_between(sender, receiver)
    chosen = [judge for judge in between if judge.direction is wanted]
    if not chosen and len(between) == 1:
        return Judge(between[0].server, wanted)
    return chosen[0]


def _check_no_server_address(step: Flow | LoosePacket, roster: Roster) -> None:
    ends = (("from", step.source, step.destination), ("to", step.destination, step.source))
    for key, end, other in ends:
        if isinstance(end, AddressEnd):
            project = roster.server(other.server).project if isinstance(other, ServerEnd) else roster.project
            owner = roster.owner(project, end.address)
            if owner is not None:
                raise UnclearError(key, f"{end} belongs to server {owner.name}: write it as that server, or say at which one (at)")
    if not any(is_server(end) for _, end, _ in ends):
        raise UnclearError("from", "neither end is a server, so nobody judges this; name a server or say at which one (at)")


def _direction_at(server: Name, sender: Party, receiver: Party, roster: Roster) -> Direction:
    own = roster.ever[server]
    for party, direction in ((sender, Direction.EGRESS), (receiver, Direction.INGRESS)):
        if party.server == server:
            return direction
    for address, direction in ((sender.address, Direction.EGRESS), (receiver.address, Direction.INGRESS)):
        if address in own:
            return direction
    if sender.address.is_unspecified:
        return Direction.EGRESS
    if is_group_address(receiver.address):
        return Direction.INGRESS
    raise UnclearError("at", f"neither end is an address of {server.name}: say the direction")


def _with_judge(judge: Judge, opener: Party, responder: Party) -> tuple[Party, Party]:
    """Later steps may call the local end by the name of the server that judges."""
    if judge.direction is Direction.EGRESS:
        return replace(opener, server=judge.server), responder
    return opener, replace(responder, server=judge.server)


def _check_fields(step: Flow | LoosePacket, protocol: int, *, ports_needed: bool) -> None:
    has_ports = protocol in PROTOCOLS_WITH_PORTS
    if ports_needed and step.port is None:
        raise UnclearError("port", f"port is missing: protocol {protocol} has ports")
    present = {"port": step.port, "source_port": step.source_port}
    for key, value in present.items():
        if value is not None and not has_ports:
            raise UnclearError(key, f"protocol {protocol} has no ports")
    for key, value in {"icmp_type": step.icmp_type, "icmp_code": step.icmp_code, "icmp_id": step.icmp_id}.items():
        if value is not None and protocol not in _ECHO_REQUEST:
            raise UnclearError(key, f"protocol {protocol} is not ICMP")
    if isinstance(step, LoosePacket):
        if step.tcp_flags is not None and protocol != TCP:
            raise UnclearError("tcp_flags", "only TCP has flags")
        if step.tcp_flags is None and protocol == TCP and step.fragment != "later":
            raise UnclearError("tcp_flags", "tcp_flags is missing: a TCP packet out of the blue must have it")
