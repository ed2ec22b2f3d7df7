"""A router and the hosts behind it, each a network namespace of its own, and packets sent through them one by one.

    web  10.0.0.9  2001:db8::9  ─┐
    db   10.0.0.5  2001:db8::5  ─┤ router (the agent's) ├─ client  203.0.113.7 198.51.100.1 ...  2001:db8:1::7

The test process enters the router's namespace, so that nft and netlink are the router's; sockets of others are made in theirs.
Neighbours are known beforehand: nothing moves on the wires but what a test sends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
_libc = ctypes.CDLL(None, use_errno=True)
_worlds = count(1)

ROUTER4, ROUTER6 = "192.0.2.254", "2001:db8:ff::1"
HOSTS = {
    "web": ("10.0.0.9", "2001:db8::9"),
    "db": ("10.0.0.5", "2001:db8::5"),
    "client": ("203.0.113.7", "198.51.100.1", "2001:db8:1::7", "2001:db8:2::1"),
}
# Nobody guards these; what goes between them passes, and shows that all that was sent before has been dealt with.
PROBE_FROM = "192.0.2.1"
PROBE_WAIT_S = 10.0


def lacking() -> str:
    """Return why there can be no namespaces here, empty if there can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install {package})"
    return "" if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0 else "namespaces are not allowed"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a namespace; what is opened there stays there."""
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as wanted:
        _enter(wanted.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@dataclass
class Wire:
    """A host's end: frames as they come and go."""

    name: str
    namespace: str
    mac: bytes
    router_mac: bytes
    probe_to: str
    link: socket.socket

    def send(self, packet: bytes) -> None:
        """Send an IP packet to the router."""
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self.link.send(self.router_mac + self.mac + kind + packet)

    def receive(self) -> bytes:
        """Return the next IP packet that came from the router, its own multicast listener reports left out."""
        while True:
            frame, (_, _, way, *_) = self.link.recvfrom(65_536)
            kind, packet = frame[12:14], frame[14:]
            is_report = kind == b"\x86\xdd" and packet[6] == 0
            if way != socket.PACKET_OUTGOING and kind in (b"\x08\x00", b"\x86\xdd") and not is_report:
                return packet

    def drain(self) -> None:
        """Throw away what waits to be received."""
        self.link.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self.link.recv(65_536)
        self.link.settimeout(PROBE_WAIT_S)


class World:
    """The namespaces; ``close`` removes them."""

    def __init__(self) -> None:
        number = next(_worlds)
        self._prefix = f"sgk{os.getpid()}-{number}-"
        self.router = f"{self._prefix}router"
        self.wires: dict[str, Wire] = {}
        self._probes = count(1)
        self._affinity = os.sched_getaffinity(0)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for wire in self.wires.values():
            wire.link.close()
        for name in ("router", *HOSTS):
            with suppress(AssertionError):
                run("ip", "netns", "delete", f"{self._prefix}{name}")
        os.sched_setaffinity(0, self._affinity)

    def _build(self) -> None:
        # On one processor packets stay in order.
        os.sched_setaffinity(0, {min(self._affinity)})
        for name in ("router", *HOSTS):
            run("ip", "netns", "add", f"{self._prefix}{name}")
            self._set(name, "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
            run("ip", "-n", f"{self._prefix}{name}", "link", "set", "lo", "up")
        self._set("router", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0")
        self._set("router", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        for number, (name, addresses) in enumerate(HOSTS.items(), 1):
            self._connect(number, name, addresses)

    def _set(self, name: str, *settings: str) -> None:
        for setting in settings:
            path, _, value = setting.partition("=")
            with inside(f"{self._prefix}{name}"):
                Path("/proc/sys", *path.split(".")).write_text(value)

    def _connect(self, number: int, name: str, addresses: tuple[str, ...]) -> None:
        host, port = f"{self._prefix}{name}", f"to-{name}"
        mac, router_mac = f"02:00:00:00:00:{number:02x}", f"02:00:00:00:01:{number:02x}"
        run("ip", "-n", self.router, "link", "add", port, "address", router_mac, "type", "veth",
            "peer", "name", "net0", "address", mac, "netns", host)  # fmt: skip
        run("ip", "-n", self.router, "link", "set", port, "up")
        run("ip", "-n", host, "link", "set", "net0", "up")
        probe_to = f"192.0.2.{100 + number}"
        for address in (*addresses, probe_to):
            run("ip", "-n", host, "address", "add", address, "dev", "net0", *(["nodad"] if ":" in address else []))
            run("ip", "-n", self.router, "neigh", "replace", address, "lladdr", mac, "dev", port, "nud", "permanent")
            if name != "client" or address == probe_to:
                run("ip", "-n", self.router, "route", "add", address, "dev", port)
        for router in (ROUTER4, ROUTER6):
            run("ip", "-n", self.router, "address", "replace", router, "dev", port, *(["nodad"] if ":" in router else []))
            run("ip", "-n", host, "neigh", "replace", router, "lladdr", router_mac, "dev", "net0", "nud", "permanent")
            run("ip", "-n", host, "route", "add", router, "dev", "net0")
            run("ip", "-n", host, "route", "add", "default", "via", router, "dev", "net0")
        if name == "client":
            for network in ("0.0.0.0/0", "::/0"):
                run("ip", "-n", self.router, "route", "add", network, "via", addresses[0] if "." in network else addresses[2],
                    "dev", port, "onlink")  # fmt: skip
        with inside(host):
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            link.bind(("net0", 0))
            link.settimeout(PROBE_WAIT_S)
        self.wires[name] = Wire(
            name, host, bytes.fromhex(mac.replace(":", "")), bytes.fromhex(router_mac.replace(":", "")), probe_to, link
        )

    def silence(self, silent: bool) -> None:
        """Have the hosts take what comes without answering or a word of their own (multicast listeners), or let them speak."""
        rules = "add table inet silence; flush table inet silence"
        if silent:
            for hook in ("input", "output"):
                rules += f"; add chain inet silence {hook} {{ type filter hook {hook} priority -300; policy drop; }}"
        else:
            rules += "; delete table inet silence"
        for wire in self.wires.values():
            run("ip", "netns", "exec", wire.namespace, "nft", rules)

    def arrivals(self, source: str, packet: bytes, destination: str) -> list[bytes]:
        """Send a packet from one host, and return what came to another because of it."""
        self.wires[source].send(packet)
        return self.settle(source, destination)

    def passes(self, source: str, packet: bytes, destination: str) -> bool:
        """Whether a packet gets from one host to another; what else comes there is overlooked."""
        return any(same(packet, arrived) for arrived in self.arrivals(source, packet, destination))

    def settle(self, source: str, destination: str) -> list[bytes]:
        """Return what has come to ``destination``, once everything that ``source`` has sent has been dealt with."""
        mark = next(self._probes)
        self.wires[source].send(probe(self.wires[destination].probe_to, mark))
        came = []
        while True:
            packet = self.wires[destination].receive()
            if _probe_mark(packet) == mark:
                return came
            if _probe_mark(packet) is None:
                came.append(packet)

    def until(self, source: str, destination: str, last: bytes) -> list[bytes]:
        """Send a packet that passes; return what came before it. TimeoutError if it does not come."""
        self.wires[source].send(last)
        came = []
        while not same(last, packet := self.wires[destination].receive()):
            came.append(packet)
        return came

    def nft(self, *arguments: str) -> str:
        """Run nft in the router's namespace."""
        return run("ip", "netns", "exec", self.router, "nft", *arguments)

    def socket(self, host: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of a host, with a deadline."""
        with inside(self.wires[host].namespace):
            made = socket.socket(family, kind, protocol)
        made.settimeout(PROBE_WAIT_S)
        return made


def probe(destination: str, mark: int) -> bytes:
    """Return a UDP packet between addresses that nobody guards."""
    data = struct.pack(">HHHHI", 9, 9, 12, 0, mark)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0, 64, 17, 0, _packed(PROBE_FROM), _packed(destination))
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data


def _probe_mark(packet: bytes) -> int | None:
    if packet[0] >> 4 != 4 or packet[12:16] != _packed(PROBE_FROM):
        return None
    return int(struct.unpack(">I", packet[28:32])[0])


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1])) + (data[-1] << 8 if len(data) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def same(sent: bytes, came: bytes) -> bool:
    """Whether it is the same packet: a router changes the hop limit and, in IPv4, the checksum."""
    if sent[0] >> 4 == 4:
        return sent[:8] + sent[9:10] + sent[12:] == came[:8] + came[9:10] + came[12 : len(sent)]
    return sent[:7] + sent[8:] == came[:7] + came[8 : len(sent)]
