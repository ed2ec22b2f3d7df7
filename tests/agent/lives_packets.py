"""Random packets: new ones, what follows them, errors about them, and what no stack sends."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random

from agent_world import ACK, FIN_ACK, RST, RST_ACK, SYN, SYN_ACK, error_about, quote, reply

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, SCTP, TCP, UDP, Address, Direction, Fragment, Packet
from secgroups.agent.records import QUOTE_BYTES, RECORD_BYTES, pack, unpack

# Two projects, whose servers may have the same addresses.
SERVERS = ("p/db", "p/web", "p/app", "q/db", "q/web")
PORTS = (0, 1, 22, 53, 67, 68, 80, 546, 547, 1_000, 8_080, 40_000, 65_535)
OWN = [ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.2.3", "2001:db8::1", "2001:db8::2", "2001:db8:8::3")]

_OUTSIDE = (
    "203.0.113.7 203.0.113.8 198.51.100.1 10.0.0.200 10.1.2.4 192.0.2.254 224.0.0.5 255.255.255.255 0.0.0.0 127.0.0.1 "
    "2001:db8:1::7 2001:db8:1::8 2001:db8:1:0:8000::7 2001:db8::200 fe80::1 ff02::1 :: ::1 ::ffff:10.0.0.1 8000::1"
)
_STRANGE = {ip_address(text) for text in ("0.0.0.0", "127.0.0.1", "::", "::1", "::ffff:10.0.0.1")}
_REMEMBERED = 60
# Where the server handle stands in a record: it is not part of the packet.
_HANDLE = range(32, 36)
# A number beyond all quotes.
_NO_QUOTE = 0xFFFF_FFFF


def some_remotes() -> list[Address]:
    """Return the addresses that rules and members are about."""
    return [*OWN, *(address for address in map(ip_address, _OUTSIDE.split()) if address not in _STRANGE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A packet, and its record and quote but for the server's handle, which every engine has its own of."""

    packet: Packet
    record: bytes
    quote: bytes

    def record_of(self, handle: int, quote_number: int) -> bytes:
        """Return the record at an engine with this handle, in a batch that has the quote at this number."""
        number = int.from_bytes(self.record[60:64], "little")
        if number:
            number = quote_number if number == 1 and self.quote else _NO_QUOTE
        return self.record[:32] + handle.to_bytes(4, "little") + self.record[36:60] + number.to_bytes(4, "little")


class Traffic:
    """Makes the packets of one life. ``servers`` are those guarded now, with their addresses."""

    def __init__(self, rng: Random) -> None:
        self.servers: Mapping[str, Collection[Address]] = {}
        self._rng = rng
        self._outside = [ip_address(text) for text in _OUTSIDE.split()]
        self._plain = [each for each in self._outside if each not in _STRANGE and not each.is_multicast]
        self._sent: deque[Packet] = deque(maxlen=_REMEMBERED)
        self._coming: deque[Packet] = deque()

    def next(self) -> Asked:
        """Return a packet; one in fifty is malformed."""
        chance = self._rng.random()
        if self._coming and chance < 0.5:
            made = self._coming.popleft()
        else:
            made = self._following() if self._sent and chance < 0.75 else self._new()
        record, quoted = pack(made, 0)
        if self._rng.random() < 0.02:
            record = self._damaged(record)
        if quoted and self._rng.random() < 0.1:
            quoted = self._damaged(quoted)
        if (record, quoted) != pack(made, 0):
            server = made.server
            made = unpack(record, quoted, lambda _: server)
        return Asked(packet=made, record=record, quote=quoted)

    def _damaged(self, entry: bytes) -> bytes:
        at = self._rng.choice([at for at in range(len(entry)) if len(entry) == QUOTE_BYTES or at not in _HANDLE])
        assert len(entry) in (RECORD_BYTES, QUOTE_BYTES)
        return entry[:at] + bytes([self._rng.choice([0, 1, 2, 4, 6, 255, self._rng.randrange(256)])]) + entry[at + 1 :]

    def _new(self) -> Packet:
        rng = self._rng
        server = rng.choice(SERVERS) if rng.random() < 0.98 else "p/nobody"
        direction = rng.choice([Direction.INGRESS, Direction.EGRESS])
        own = sorted(self.servers.get(server, ()), key=str) if rng.random() < 0.95 else OWN
        local = rng.choice(own or OWN)
        remotes = [*OWN, *(self._outside if rng.random() < 0.1 else self._plain)]
        remote = rng.choice([each for each in remotes if each.version == local.version])
        if rng.random() < 0.02:
            local = rng.choice(self._outside)
        source, destination = (remote, local) if direction is Direction.INGRESS else (local, remote)
        protocol = rng.choice([TCP, TCP, TCP, TCP, UDP, UDP, UDP, ICMP, ICMP, SCTP, 47, rng.randrange(256)])
        if protocol == ICMP and (source.version == 6) == (rng.random() < 0.97):
            protocol = ICMPV6
        made = Packet(
            server=server, direction=direction, source=source, destination=destination, protocol=protocol, length=self._length()
        )
        made = self._fragmented(replace(made, **self._transport(protocol)))
        if rng.random() < 0.01:
            made = replace(made, **rng.choice([{"destination_port": 70_000}, {"protocol": 300}, {"icmp_type": 256}, {"length": 0}]))
        self._sent.append(made)
        if rng.random() < 0.6:
            self._coming.extend(self._conversation(made))
        return made

    def _conversation(self, opening: Packet) -> list[Packet]:
        """Return how it goes on, up to a random point, if nothing goes wrong."""
        answer, more = reply(opening, tcp_flags=0), replace(opening, fragment=Fragment.NONE)
        if opening.protocol == TCP:
            flags = [(answer, SYN_ACK), (more, ACK), (answer, ACK), (more, ACK), (answer, FIN_ACK), (more, FIN_ACK), (answer, ACK)]
            script = [replace(each, tcp_flags=int(flag), length=self._length()) for each, flag in flags]
        else:
            script = [answer, more, answer, more]
        return script[: self._rng.randint(1, len(script))]

    def _length(self) -> int:
        # Four in a hundred make the lower half of a flow's count of bytes overflow.
        return self._rng.choice([40, 60, 1_500]) if self._rng.random() < 0.96 else 0xFFFF_FFFF

    def _transport(self, protocol: int) -> dict[str, int]:
        rng = self._rng
        if protocol in (ICMP, ICMPV6):
            kind = (
                rng.choice([8, 8, 13, 15, 17, 0, 3, 9]) if protocol == ICMP else rng.choice([128, 128, 139, 129, 1, 134, 135, 143])
            )
            return {
                "icmp_type": kind if rng.random() < 0.9 else rng.randrange(256),
                "icmp_code": rng.choice([0, 0, 0, 1, 255]),
                "icmp_id": rng.choice([1, 2]),
            }
        if protocol not in PROTOCOLS_WITH_PORTS:
            return {}
        if rng.random() < 0.04:
            client, service = rng.choice([(68, 67), (546, 547), (67, 68), (547, 546)])
        else:
            client, service = (
                rng.choice([1_000, 40_000, 40_001, rng.choice(PORTS)]),
                rng.choice([22, 22, 80, 53, rng.choice(PORTS)]),
            )
        flags = int(SYN) if rng.random() < 0.8 else self._flags()
        return {"source_port": client, "destination_port": service, "tcp_flags": flags if protocol == TCP else 0}

    def _flags(self) -> int:
        if self._rng.random() < 0.25:
            return self._rng.randrange(256)
        return int(self._rng.choice([SYN, SYN_ACK, SYN_ACK, ACK, ACK, ACK, FIN_ACK, FIN_ACK, RST, RST_ACK]))

    def _fragmented(self, made: Packet) -> Packet:
        chance = self._rng.random()
        if chance > 0.06:
            return made
        number = self._rng.randint(0, 3)
        if chance > 0.02:
            return replace(made, fragment=Fragment.FIRST, fragment_id=number)
        return replace(made, fragment=Fragment.LATER, fragment_id=number, source_port=0, destination_port=0, tcp_flags=0)

    def _following(self) -> Packet:
        rng = self._rng
        # Mostly something young, so that conversations get somewhere.
        before = self._sent[-1 - min(int(rng.expovariate(0.15)), len(self._sent) - 1)]
        what = rng.choice(["reply"] * 5 + ["go on"] * 4 + ["again", "again", "error", "error", "later", "first"])
        if what == "error" and before.source.version == before.destination.version:
            return self._error(before)
        if what == "later":
            return replace(before, fragment=Fragment.LATER, source_port=0, destination_port=0, tcp_flags=0, length=self._length())
        if what == "first":
            return replace(before, fragment=Fragment.FIRST, length=self._length())
        if what == "again":
            return before
        flags = self._flags() if before.protocol == TCP else 0
        if what == "reply":
            made = reply(before, tcp_flags=flags, length=self._length(), fragment=Fragment.NONE)
            if before.protocol not in (ICMP, ICMPV6):
                made = replace(made, icmp_type=before.icmp_type)
        else:
            made = replace(before, tcp_flags=flags, length=self._length(), fragment=Fragment.NONE)
        if rng.random() < 0.5:
            self._sent.append(made)
        return made

    def _error(self, before: Packet) -> Packet:
        rng = self._rng
        made = error_about(before, source=str(rng.choice([before.destination, before.destination, rng.choice(self._outside)])))
        if rng.random() < 0.3:
            made = replace(made, icmp_type=rng.choice([3, 4, 5, 11, 12] if made.source.version == 4 else [1, 2, 3, 4, 100]))
        if rng.random() < 0.3:
            about = quote(rng.choice(self._sent))
            changes = rng.choice(
                [{}, {"source": about.destination}, {"protocol": rng.choice([TCP, UDP, 300])}, {"source_port": 99}]
            )
            made = replace(made, quoted=replace(about, **changes))
        if rng.random() < 0.1:
            made = replace(made, direction=made.direction.opposite)
        return made
