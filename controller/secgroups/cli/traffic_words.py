"""Flows and verdicts as lines: the former in the shape of ``conntrack -L``, the latter in that of ``hubble observe``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from secgroups.cli import pb

# Of a UUIDv7, what comes after this is random; sgctl takes it for the id wherever it takes one.
SHORT_ID_CHARACTERS = 18

_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "gre": 47, "dccp": 33, "udplite": 136}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_WITH_PORTS = ("tcp", "udp", "sctp")
_ICMP = ("icmp", "icmpv6")
_REPLY_TYPES = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}


def protocol_word(message: pb.Flow | pb.Packet | pb.QuotedPacket, address: str) -> str:
    """Return ``tcp``, ``udp``, ``icmp``, ``icmpv6`` (if ``address`` is IPv6), another well-known name, or the number."""
    if message.protocol == pb.PROTOCOL_NUMBER:
        return _NAMES.get(message.protocol_number, str(message.protocol_number))
    if message.protocol == pb.PROTOCOL_ICMP:
        return "icmpv6" if ":" in address else "icmp"
    return pb.Protocol.Name(message.protocol).removeprefix("PROTOCOL_").lower()


def end_text(address: str, port: int) -> str:
    """Return ``10.0.0.9:80``, ``[2001:db8::9]:80``, or the bare address if there is no port."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def short_id(rule_id: str) -> str:
    """Return the beginning of a rule's id that no other rule of the same controller has."""
    return rule_id[:SHORT_ID_CHARACTERS]


def state_word(flow: pb.Flow) -> str:
    """Return the state of a flow, for example ``ESTABLISHED``."""
    return pb.FlowState.Name(flow.state).removeprefix("FLOW_STATE_")


def direction_word(direction: pb.Direction.ValueType) -> str:
    """Return ``ingress`` or ``egress``."""
    return pb.Direction.Name(direction).removeprefix("DIRECTION_").lower()


def conntrack_line(flow: pb.Flow) -> str:
    """Return a flow as ``conntrack -L`` shows it, with server and rule at the end.

    As there, the number after the protocol's is the seconds left, the state of TCP follows, and the other direction is written
    from its own sender's side. REVOKED stands in place of the state, whatever the protocol.
    """
    word = protocol_word(flow, flow.local_address)
    number = flow.protocol_number if flow.protocol == pb.PROTOCOL_NUMBER else _NUMBERS[word]
    shown = "unknown" if word.isdigit() else word
    parts = [f"{shown:<8} {number} {flow.remaining.seconds}"]
    if flow.revoked or word == "tcp":
        parts.append(state_word(flow))
    parts += _tuple(flow, word, reply=False)
    if not flow.reply_packets:
        parts.append("[UNREPLIED]")
    parts += _tuple(flow, word, reply=True)
    if flow.answered:
        parts.append("[ASSURED]")
    parts += [f"server={flow.server}", f"rule={short_id(flow.rule_id)}"]
    return " ".join(parts)


def _tuple(flow: pb.Flow, word: str, *, reply: bool) -> Iterator[str]:
    """Yield one direction of a flow: ends, ports or ICMP fields, packets and bytes."""
    from_remote = (flow.opening_direction == pb.DIRECTION_INGRESS) != reply
    here, there = (flow.local_address, flow.local_port), (flow.remote_address, flow.remote_port)
    (source, source_port), (destination, destination_port) = (there, here) if from_remote else (here, there)
    yield from (f"src={source}", f"dst={destination}")
    if word in _WITH_PORTS:
        yield from (f"sport={source_port}", f"dport={destination_port}")
    elif word in _ICMP:
        yield from (f"type={_REPLY_TYPES[flow.icmp_type] if reply else flow.icmp_type}", f"id={flow.icmp_id}")
    packets, size_bytes = (flow.reply_packets, flow.reply_bytes) if reply else (flow.opening_packets, flow.opening_bytes)
    yield from (f"packets={packets}", f"bytes={size_bytes}")


def verdict_line(event: pb.VerdictEvent) -> str:
    """Return a verdict in one line.

    For example ``2026-01-31T12:00:00.123Z: 203.0.113.7:40000 -> 10.0.0.9:23 p/web-1 ingress DENY NO_RULE (tcp SYN)``.
    """
    packet = event.packet
    moment = datetime.fromtimestamp(event.time.seconds, UTC)
    source, destination = (
        end_text(packet.source, packet.source_port),
        end_text(packet.destination, packet.destination_port),
    )
    action = pb.Action.Name(event.action).removeprefix("ACTION_")
    reason = pb.Reason.Name(event.reason).removeprefix("REASON_")
    words = [
        f"{moment:%Y-%m-%dT%H:%M:%S}.{event.time.nanos // 1_000_000:03}Z:",
        f"{source} -> {destination}",
        # An agent keeps no name of a server that it does not guard.
        packet.server or "-",
        direction_word(packet.direction),
        action,
        reason,
        *([f"rule={short_id(event.rule_id)}"] if event.rule_id else []),
        f"({_packet_words(packet)})",
    ]
    return " ".join(words)


def _packet_words(packet: pb.Packet) -> str:
    word = protocol_word(packet, packet.source)
    words = [f"protocol {word}" if word.isdigit() else word]
    if packet.fragment == pb.FRAGMENT_POSITION_LATER:
        return f"{words[0]} later fragment"
    if word == "tcp":
        words.append(",".join(pb.TcpFlag.Name(flag).removeprefix("TCP_FLAG_") for flag in packet.tcp_flags) or "no flags")
    elif word in _ICMP:
        words.append(f"type {packet.icmp_type} code {packet.icmp_code}")
    if packet.HasField("quoted"):
        quoted = packet.quoted
        source, destination = (
            end_text(quoted.source, quoted.source_port),
            end_text(quoted.destination, quoted.destination_port),
        )
        words.append(f"about {protocol_word(quoted, quoted.source)} {source} -> {destination}")
    if packet.fragment == pb.FRAGMENT_POSITION_FIRST:
        words.append("first fragment")
    return " ".join(words)
