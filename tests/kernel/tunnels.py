"""A router in a namespace whose interfaces end in this process: a packet that is written has gone through when that returns.

    sv0, sv1, ...  one for each server ─┐
                                        ├─ router (the agent's)
    out            everybody else      ─┘

What is sent needs no neighbours and no frames: tun interfaces carry IP packets alone.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from itertools import count

from netns import inside, run, same

from secgroups.agent.flow import Address

OUTSIDE = "out"
_TUN = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET_BYTES_MAX = 65_536
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)
_routers = count(1)


def lacking_tunnels() -> str:
    """Return why there can be no such interfaces here, empty if there can."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        return f"{_TUN} can't be opened: {error.strerror}"
    return ""


class Router:
    """The namespace and its interfaces, one for each of ``servers_max`` servers; ``close`` removes them."""

    def __init__(self, servers_max: int) -> None:
        self.namespace = f"sgt{os.getpid()}-{next(_routers)}"
        self._ends: dict[str, int] = {}
        self._routes: dict[Address, str] = {}
        run("ip", "netns", "add", self.namespace)
        try:
            with inside(self.namespace):
                run("sysctl", "-q", "-w", *_SYSCTLS)
                for name in (OUTSIDE, *map(interface, range(servers_max))):
                    self._ends[name] = _open(name)
                self._batch([f"link set {name} up" for name in self._ends])
                self._batch([f"{family} route add default dev {OUTSIDE}" for family in ("-4", "-6")])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for end in self._ends.values():
            os.close(end)
        run("ip", "netns", "delete", self.namespace)

    def route(self, wanted: dict[Address, str]) -> None:
        """Have these addresses, and no others, behind these interfaces; the rest of the world is outside."""
        gone = [f"route delete {address} dev {name}" for address, name in self._routes.items() if wanted.get(address) != name]
        come = [f"route add {address} dev {name}" for address, name in wanted.items() if self._routes.get(address) != name]
        self._batch([*gone, *come])
        self._routes = dict(wanted)

    def arrivals(self, source: str, packet: bytes) -> set[str]:
        """Write a packet to one interface; return those from which it came out."""
        for end in self._ends.values():
            _drain(end)
        os.write(self._ends[source], packet)
        return {name for name, end in self._ends.items() if any(same(packet, each) for each in _drain(end))}

    def _batch(self, commands: Iterable[str]) -> None:
        for command in commands:
            run("ip", "-n", self.namespace, *command.split())


def interface(number: int) -> str:
    """Return the name of the interface of a server."""
    return f"sv{number}"


def _open(name: str) -> int:
    end = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except BaseException:
        os.close(end)
        raise
    return end


def _drain(end: int) -> list[bytes]:
    came = []
    with suppress(BlockingIOError):
        while True:
            came.append(os.read(end, _PACKET_BYTES_MAX))
    return came
