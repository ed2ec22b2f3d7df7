"""Network namespaces for the demo: hosts behind a router, as servers are behind a hypervisor.

    web-1   10.0.0.9   ── to-web-1  ─┐
    db-1    10.0.0.20  ── to-db-1   ─┤ router ├─ to-client ── client 203.0.113.7
    app-1   10.0.0.30  ── to-app-1  ─┘

Each host has one address and the router as its way to everywhere. The names of the namespaces begin with ``secgroups-demo-`` and
the id of the process that made them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from secgroups.lab.stack import StackError

ROUTER = "router"
PREFIX = "secgroups-demo-"
COMMAND_TIMEOUT_S = 30
END_TIMEOUT_S = 10.0
_POLL_S = 0.05
# An address that every host reaches through its only wire.
_GATEWAY = "192.0.2.254"
# linux/sched.h
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def lacking() -> list[str]:
    """Return what this machine lacks for namespaces and nftables, in words; empty if nothing."""
    lacks = [] if os.geteuid() == 0 else ["root: network namespaces and nftables are for root alone"]
    for program, package in (("ip", "iproute2"), ("curl", "curl")):
        if shutil.which(program) is None:
            lacks.append(f"{program}: it is not installed (Debian: apt-get install {package})")
    try:
        ctypes.CDLL("libnftables.so.1")
    except OSError:
        lacks.append("libnftables.so.1: it is not installed (Debian: apt-get install nftables)")
    if not lacks and subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0:
        lacks.append("network namespaces: the kernel has none")
    return lacks


class Namespaces:
    """A router and hosts with these addresses; as a context manager it makes them, and ends what runs in them and removes them.

    ``made_by`` is the process that makes them, this one if it is not said.
    """

    def __init__(self, hosts: Mapping[str, str], *, made_by: int | None = None) -> None:
        self._hosts = hosts
        self._prefix = f"{PREFIX}{os.getpid() if made_by is None else made_by}-"

    def name(self, host: str) -> str:
        """Return the name of the namespace of a host, or of the router."""
        return f"{self._prefix}{host}"

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _make(self) -> None:
        router = self.name(ROUTER)
        for host in (ROUTER, *self._hosts):
            _ip("netns", "add", self.name(host))
            _ip("-n", self.name(host), "link", "set", "lo", "up")
        _ip("netns", "exec", router, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for host, address in self._hosts.items():
            inside_host, wire = self.name(host), f"to-{host}"
            _ip("-n", router, "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", inside_host)
            _ip("-n", router, "address", "add", f"{_GATEWAY}/32", "dev", wire)
            _ip("-n", router, "link", "set", wire, "up")
            _ip("-n", router, "route", "add", address, "dev", wire)
            _ip("-n", inside_host, "address", "add", f"{address}/32", "dev", "eth0")
            _ip("-n", inside_host, "link", "set", "eth0", "up")
            _ip("-n", inside_host, "route", "add", _GATEWAY, "dev", "eth0")
            _ip("-n", inside_host, "route", "add", "default", "via", _GATEWAY)

    def _remove(self) -> None:
        made = set(subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout.split())
        for host in (ROUTER, *self._hosts):
            if self.name(host) in made:
                _end_all_in(self.name(host))
                subprocess.run(["ip", "netns", "delete", self.name(host)], check=False, timeout=COMMAND_TIMEOUT_S)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have this thread in a namespace for a while: a socket that is opened there stays there."""
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as wanted:
        _enter(wanted.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise StackError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _end_all_in(namespace: str) -> None:
    """End what runs in a namespace of ours, which only we have started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_TIMEOUT_S
        while (pids := _pids_in(namespace)) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_POLL_S)


def _pids_in(namespace: str) -> list[int]:
    command = ["ip", "netns", "pids", namespace]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    return [int(word) for word in listed.stdout.split()]
