"""What runs on the servers of the demo with real packets: a web server, a database, and what asks them from elsewhere."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from secgroups.lab.namespaces import inside
from secgroups.lab.stack import StackError

READY_TIMEOUT_S = 30.0
# How long somebody who gets no answer waits; on these wires an answer takes less than a millisecond.
PATIENCE_S = 1.0
NO_ANSWER = "no answer"
DATABASE_PORT = 5432
_POSTGRES_USER = "postgres"
_POLL_S = 0.05
_DOWNLOAD_BYTES = 1 << 40
_CURL_TIMED_OUT = 28
_PLAIN_SERVER = """
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(b"a plain TCP server, not PostgreSQL")
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", {port}), Handler).serve_forever()
"""


def in_namespace(namespace: str, *command: str) -> list[str]:
    """Return the command that runs ``command`` in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


class WebServer:
    """``python -m http.server`` on two ports of a namespace, with a page and with a download that has no end."""

    PAGE = "in force"

    def __init__(self, namespace: str, folder: Path, ports: Sequence[int]) -> None:
        self._namespace = namespace
        self._ports = ports
        self._folder = folder / "www"

    def start(self) -> None:
        """Return when it accepts connections. StackError if it does not."""
        self._folder.mkdir()
        (self._folder / "page").write_text(self.PAGE)
        # A hole: it takes no room on the disk.
        with (self._folder / "download").open("wb") as download:
            download.truncate(_DOWNLOAD_BYTES)
        for port in self._ports:
            command = [sys.executable, "-m", "http.server", str(port), "--directory", str(self._folder)]
            _start(in_namespace(self._namespace, *command))
            _wait_for_port(self._namespace, port)


class Database:
    """PostgreSQL where its own user can run it in ``folder``, else a TCP server on the same port that says that it is none."""

    def __init__(self, namespace: str, address: str, folder: Path) -> None:
        self._namespace = namespace
        self._address = address
        self._folder = folder / "postgresql"
        self._programs, self._why_none = _find_postgres(folder)

    @property
    def what(self) -> str:
        """What it is, in words."""
        return f"a plain TCP server, since {self._why_none}," if self._programs is None else "PostgreSQL"

    def start(self) -> None:
        """Return when it accepts connections. StackError if it does not."""
        command = [sys.executable, "-c", _PLAIN_SERVER.format(port=DATABASE_PORT)]
        if self._programs is not None:
            command = self._make(self._programs)
        _start(in_namespace(self._namespace, *command))
        _wait_for_port(self._namespace, DATABASE_PORT, self._address)

    def _make(self, programs: Path) -> list[str]:
        user = pwd.getpwnam(_POSTGRES_USER)
        self._folder.mkdir(mode=0o700)
        os.chown(self._folder, user.pw_uid, user.pw_gid)
        data = str(self._folder)
        make = _as_postgres(str(programs / "initdb"), "-D", data, "-A", "trust", "-N")
        made = subprocess.run(make, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise StackError(f"initdb: {made.stderr.strip()}")
        with (self._folder / "pg_hba.conf").open("a") as hosts:
            hosts.write("host all all all trust\n")
        options = {"listen_addresses": self._address, "port": DATABASE_PORT, "unix_socket_directories": "", "fsync": "off"}
        chosen = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return _as_postgres(str(programs / "postgres"), "-D", data, *chosen)

    def ask(self, namespace: str) -> str:
        """Ask it from another namespace; return the first word of what it says, ``no answer`` if nothing comes."""
        if self._programs is None:
            return _greeting(namespace, self._address)
        command = [str(self._programs / "psql"), "-h", self._address, "-U", "postgres", "-At", "-c", "select version()"]
        try:
            done = subprocess.run(
                in_namespace(namespace, *command), capture_output=True, text=True, check=False, timeout=3 * PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            return NO_ANSWER
        return done.stdout.split()[0] if done.returncode == 0 else f"psql: {done.stderr.strip()}"

    @property
    def answer(self) -> str:
        """What ``ask`` returns when it gets through."""
        return "a" if self._programs is None else "PostgreSQL"


def curl(namespace: str, url: str) -> str:
    """Fetch a page; return it, ``no answer`` if nothing comes, or what curl says."""
    command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE_S), url]
    done = subprocess.run(in_namespace(namespace, *command), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    return NO_ANSWER if done.returncode == _CURL_TIMED_OUT else done.stderr.strip()


def download(namespace: str, url: str) -> subprocess.Popen[bytes]:
    """Start a download that goes on until it is killed, of so many packets that few milliseconds are without one."""
    command = ["curl", "--silent", "--output", "/dev/null", "--limit-rate", "50M", url]
    return _start(in_namespace(namespace, *command))


def ping(namespace: str, address: str) -> str:
    """Send an ICMP echo request; return ``answered`` or ``no answer``."""
    identifier = os.getpid() & 0xFFFF
    # The checksum (RFC 792) of type 8, code 0, the identifier and sequence number 1: their sum, carried around, inverted.
    total = 0x0800 + identifier + 1
    request = struct.pack(">BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, identifier, 1)
    with inside(namespace):
        link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with link:
        link.sendto(request, (address, 0))
        deadline = time.monotonic() + PATIENCE_S
        with suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                link.settimeout(left)
                packet = link.recv(2048)
                header_bytes = (packet[0] & 0x0F) * 4
                if packet[header_bytes] == 0 and packet[header_bytes + 4 : header_bytes + 6] == struct.pack(">H", identifier):
                    return "answered"
    return NO_ANSWER


def _greeting(namespace: str, address: str) -> str:
    with inside(namespace):
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    link.settimeout(PATIENCE_S)
    with link, suppress(TimeoutError):
        link.connect((address, DATABASE_PORT))
        return link.recv(100).decode().split()[0]
    return NO_ANSWER


def _find_postgres(folder: Path) -> tuple[Path | None, str]:
    """Return where initdb, postgres and psql are; None, and why, if PostgreSQL can't be run with its data in ``folder``."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        folders.append(Path(found).parent)
    programs = next((each for each in folders if all((each / name).exists() for name in ("initdb", "postgres", "psql"))), None)
    if programs is None or not _has_postgres_user() or shutil.which("setpriv") is None:
        return None, "PostgreSQL is not installed"
    # A folder for temporary files may be closed to other users.
    if subprocess.run(_as_postgres("test", "-x", str(folder)), check=False).returncode != 0:
        return None, f"PostgreSQL's user may not enter {folder}"
    return programs, ""


def _has_postgres_user() -> bool:
    try:
        pwd.getpwnam(_POSTGRES_USER)
    except KeyError:
        return False
    return True


def _as_postgres(*command: str) -> list[str]:
    """Return the command that runs ``command`` as PostgreSQL's user: it refuses to run as root."""
    user = pwd.getpwnam(_POSTGRES_USER)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *command]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    # It ends with its namespace.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_port(namespace: str, port: int, address: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with inside(namespace):
            link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with link, suppress(ConnectionRefusedError):
            link.connect((address, port))
            return
        time.sleep(_POLL_S)
    raise StackError(f"nothing answered at port {port} of {namespace} within {READY_TIMEOUT_S:.0f} s")
