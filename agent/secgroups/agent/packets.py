"""Turns the readable packets of VerdictService into the engine's, and its answers back."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from secgroups.agent.errors import PacketError
from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Address,
    Direction,
    Explanation,
    Fragment,
    Packet,
    QuotedPacket,
    TcpFlags,
)
from secgroups.agent.ruleset import Ruleset
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

_NUMBERS = {types.PROTOCOL_TCP: TCP, types.PROTOCOL_UDP: UDP}
_PORT_MAX = 65_535
_BYTE_MAX = 255
_FLAGS = {
    pb.TCP_FLAG_FIN: TcpFlags.FIN,
    pb.TCP_FLAG_SYN: TcpFlags.SYN,
    pb.TCP_FLAG_RST: TcpFlags.RST,
    pb.TCP_FLAG_PSH: TcpFlags.PSH,
    pb.TCP_FLAG_ACK: TcpFlags.ACK,
    pb.TCP_FLAG_URG: TcpFlags.URG,
    pb.TCP_FLAG_ECE: TcpFlags.ECE,
    pb.TCP_FLAG_CWR: TcpFlags.CWR,
}
_PROTOCOLS = {TCP: types.PROTOCOL_TCP, UDP: types.PROTOCOL_UDP}
_FRAGMENTS = {
    pb.FRAGMENT_POSITION_UNSPECIFIED: Fragment.NONE,
    pb.FRAGMENT_POSITION_FIRST: Fragment.FIRST,
    pb.FRAGMENT_POSITION_LATER: Fragment.LATER,
}
_POSITIONS = {fragment: position for position, fragment in _FRAGMENTS.items()}


def packet_of(message: pb.Packet, path: str = "packet") -> Packet:
    """Return the packet. PacketError, with a field such as ``packet.source_port``, for a value that no packet can have.

    An impossible combination of possible values is a packet all the same: it gets its verdict.
    """
    if not message.server:
        raise PacketError(f"{path}.server", "is missing; write project/id")
    if message.direction not in (types.DIRECTION_INGRESS, types.DIRECTION_EGRESS):
        raise PacketError(f"{path}.direction", "must be DIRECTION_INGRESS or DIRECTION_EGRESS")
    source = _address(message.source, f"{path}.source")
    if message.fragment not in _FRAGMENTS:
        raise PacketError(f"{path}.fragment", f"{message.fragment} is no position of a fragment")
    return Packet(
        server=message.server,
        direction=Direction(message.direction),
        source=source,
        destination=_address(message.destination, f"{path}.destination"),
        protocol=_protocol(message, source, path),
        source_port=_within(message.source_port, _PORT_MAX, f"{path}.source_port"),
        destination_port=_within(message.destination_port, _PORT_MAX, f"{path}.destination_port"),
        tcp_flags=_tcp_flags(message, path),
        icmp_type=_within(message.icmp_type, _BYTE_MAX, f"{path}.icmp_type"),
        icmp_code=_within(message.icmp_code, _BYTE_MAX, f"{path}.icmp_code"),
        icmp_id=_within(message.icmp_id, _PORT_MAX, f"{path}.icmp_id"),
        fragment=_FRAGMENTS[message.fragment],
        fragment_id=message.fragment_id,
        quoted=_quoted(message.quoted, f"{path}.quoted") if message.HasField("quoted") else None,
        length=message.length,
    )


def packet_message(packet: Packet) -> pb.Packet:
    """Return the message of which ``packet_of`` makes ``packet``."""
    message = pb.Packet(
        server=packet.server,
        direction=types.Direction.ValueType(packet.direction),
        source=str(packet.source),
        destination=str(packet.destination),
        source_port=packet.source_port,
        destination_port=packet.destination_port,
        tcp_flags=[name for name, flag in _FLAGS.items() if packet.tcp_flags & flag],
        icmp_type=packet.icmp_type,
        icmp_code=packet.icmp_code,
        icmp_id=packet.icmp_id,
        fragment=_POSITIONS[packet.fragment],
        fragment_id=packet.fragment_id,
        length=packet.length,
    )
    _set_protocol(message, packet.protocol, packet.source)
    if packet.quoted is not None:
        message.quoted.CopyFrom(_quoted_message(packet.quoted))
    return message


def explanation_message(explanation: Explanation, ruleset: Ruleset) -> pb.ExplainResponse:
    """Return the answer; names of groups are those of ``ruleset``."""
    verdict = explanation.verdict
    group = ruleset.groups.get(explanation.group_id)
    return pb.ExplainResponse(
        action=types.Action.ValueType(verdict.action),
        reason=types.Reason.ValueType(verdict.reason),
        rule_id=verdict.rule_id,
        group_id=explanation.group_id,
        group_name=group.name if group else "",
        step=explanation.step,
        nearest=[
            rulesets.NearMiss(rule_id=miss.rule_id, group_id=miss.group_id, failed=miss.failed, text=miss.text)
            for miss in explanation.nearest
        ],
        text=explanation.text,
        opens=verdict.opened,
    )


def _quoted(message: pb.QuotedPacket, path: str) -> QuotedPacket:
    source = _address(message.source, f"{path}.source")
    return QuotedPacket(
        source=source,
        destination=_address(message.destination, f"{path}.destination"),
        protocol=_protocol(message, source, path),
        source_port=_within(message.source_port, _PORT_MAX, f"{path}.source_port"),
        destination_port=_within(message.destination_port, _PORT_MAX, f"{path}.destination_port"),
        icmp_type=_within(message.icmp_type, _BYTE_MAX, f"{path}.icmp_type"),
        icmp_id=_within(message.icmp_id, _PORT_MAX, f"{path}.icmp_id"),
    )


def _quoted_message(quoted: QuotedPacket) -> pb.QuotedPacket:
    message = pb.QuotedPacket(
        source=str(quoted.source),
        destination=str(quoted.destination),
        source_port=quoted.source_port,
        destination_port=quoted.destination_port,
        icmp_type=quoted.icmp_type,
        icmp_id=quoted.icmp_id,
    )
    _set_protocol(message, quoted.protocol, quoted.source)
    return message


def _set_protocol(message: pb.Packet | pb.QuotedPacket, protocol: int, source: Address) -> None:
    if protocol == (ICMP if source.version == 4 else ICMPV6):
        message.protocol = types.PROTOCOL_ICMP
    elif protocol in _PROTOCOLS:
        message.protocol = _PROTOCOLS[protocol]
    else:
        message.protocol = types.PROTOCOL_NUMBER
        message.protocol_number = protocol


def _address(text: str, field: str) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise PacketError(field, f"{text[:64]!r} is no IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise PacketError(field, f"{text[:64]!r} has a scope, which no packet carries")
    return address


def _protocol(message: pb.Packet | pb.QuotedPacket, source: Address, path: str) -> int:
    protocol = message.protocol
    if message.HasField("protocol_number") != (protocol == types.PROTOCOL_NUMBER):
        raise PacketError(f"{path}.protocol_number", "must be given exactly when protocol is PROTOCOL_NUMBER")
    if protocol == types.PROTOCOL_NUMBER:
        return _within(message.protocol_number, _BYTE_MAX, f"{path}.protocol_number")
    if protocol == types.PROTOCOL_ICMP:
        return ICMP if source.version == 4 else ICMPV6
    if protocol not in _NUMBERS:
        raise PacketError(f"{path}.protocol", "must be PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP or PROTOCOL_NUMBER")
    return _NUMBERS[protocol]


def _tcp_flags(message: pb.Packet, path: str) -> int:
    flags = 0
    for number, flag in enumerate(message.tcp_flags):
        field = f"{path}.tcp_flags[{number}]"
        if flag not in _FLAGS:
            raise PacketError(field, f"{flag} is no flag of TCP")
        if flags & _FLAGS[flag]:
            raise PacketError(field, f"{pb.TcpFlag.Name(flag)} stands twice")
        flags |= _FLAGS[flag]
    return flags


def _within(value: int, most: int, field: str) -> int:
    if value > most:
        raise PacketError(field, f"{value} is not in 0..{most}")
    return value
