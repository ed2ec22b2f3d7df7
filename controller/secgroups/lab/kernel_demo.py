"""The main job with real packets: servers in namespaces, the kernel of the router between them filters by an agent's rules.

``python -m secgroups.lab.demo --kernel [--json]``. Two processes: the outer one makes the namespaces, starts the demo in the
router's and, however that ends, ends all that runs in them and removes them. With ``--json`` the last thing on stdout is one
object: ``checks`` (name, expected, got), ``delete_to_last_packet_ms`` (median), ``delete_to_last_packet_ms_all`` and ``ok``. Exit
status 0 only if every check holds, 2 if this machine lacks something, which is said.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
import grpc

from secgroups.lab.demo_checks import Checks, run_sgctl
from secgroups.lab.demo_services import NO_ANSWER, Database, WebServer, curl, download, in_namespace, ping
from secgroups.lab.namespaces import ROUTER, Namespaces, inside, lacking
from secgroups.lab.stack import Stack, StackError, environment_of
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import group_service_pb2_grpc as groups_grpc
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import rule_service_pb2_grpc as rules_grpc
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import ruleset_service_pb2_grpc as rulesets_grpc
from secgroups.v1 import types_pb2 as types

PROJECT = "demo"
AGENT = "hypervisor-1"
CLIENT = "client"
# server: address, groups
SERVERS = {
    "web-1": ("10.0.0.9", ["web-servers", "ping"]),
    "db-1": ("10.0.0.20", ["database"]),
    "app-1": ("10.0.0.30", ["apps"]),
}
HOSTS = {**{server: address for server, (address, _) in SERVERS.items()}, CLIENT: "203.0.113.7"}

MANIFEST = """\
groups:
  web-servers:
    description: HTTP from anywhere
    rules:
      - {direction: ingress, protocol: tcp, ports: 80, remote: any}
      - {direction: egress, protocol: any, remote: any}
  database:
    description: PostgreSQL from the web servers only
    rules:
      - {direction: ingress, protocol: tcp, ports: 5432, remote: {group: web-servers}}
  apps:
    description: nothing from anywhere
    rules:
      - {direction: egress, protocol: any, remote: any}
  ping:
    description: ICMP from anywhere
    rules:
      - {direction: ingress, protocol: icmp, remote: any}
"""

WEB_PORT, OTHER_PORT = 80, 8080
ROUNDS = 3
# A connection from which nothing has come for so long has stopped; it would have brought hundreds of packets.
SILENCE_S = 1.0
RUN_TIMEOUT_S = 20.0
INNER_END_TIMEOUT_S = 30.0
_ETH_P_IP = 0x0800
# asm-generic/socket.h: Python has no name for it. The kernel's time of arrival, as seconds and nanoseconds since the Unix epoch.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
_INTERRUPTED = 128 + signal.SIGINT


def run_in_namespaces(*, as_json: bool) -> int:
    """Make the namespaces, run the demo in the router's, remove them; return the exit status."""
    if lacks := lacking():
        for lack in lacks:
            click.echo(f"error: the demo with real packets lacks {lack}", err=True)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        # Removed last: what runs in the namespaces has its files in it.
        with tempfile.TemporaryDirectory(prefix="secgroups-demo-") as folder, Namespaces(HOSTS) as namespaces:
            # PostgreSQL has a user of its own and its data in there.
            Path(folder).chmod(0o711)
            arguments = [folder, str(os.getpid()), *(["--json"] if as_json else [])]
            command = [sys.executable, "-m", "secgroups.lab.kernel_demo", *arguments]
            with subprocess.Popen(in_namespace(namespaces.name(ROUTER), *command)) as inner:
                return _status_of(inner)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except StackError as error:
        click.echo(f"error: {error}", err=True)
        return 1


def _status_of(inner: subprocess.Popen[bytes]) -> int:
    try:
        return inner.wait()
    except BaseException:
        # Ctrl-C was for both of us; other signals were not.
        inner.terminate()
        with suppress(subprocess.TimeoutExpired):
            inner.wait(INNER_END_TIMEOUT_S)
        inner.kill()
        raise


class KernelDemo:
    """The steps, in the router's namespace."""

    def __init__(self, stack: Stack, namespaces: Namespaces, checks: Checks, folder: Path) -> None:
        self._stack = stack
        self._namespaces = namespaces
        self._checks = checks
        self._folder = folder
        self._environment = environment_of(stack, PROJECT)
        channel = stack.channel()
        self._groups = groups_grpc.GroupServiceStub(channel)
        self._rules = rules_grpc.RuleServiceStub(channel)
        self._rulesets = rulesets_grpc.RulesetServiceStub(channel)
        self._web = WebServer(namespaces.name("web-1"), folder, [WEB_PORT, OTHER_PORT])
        self._database = Database(namespaces.name("db-1"), HOSTS["db-1"], folder)

    def load(self) -> None:
        """Start what the servers serve, load the configurations, attach the servers."""
        self._checks.say(f"\nA web server on web-1, ports {WEB_PORT} and {OTHER_PORT}, and {self._database.what} on db-1")
        self._web.start()
        self._database.start()
        manifest = self._folder / "demo.yaml"
        manifest.write_text(MANIFEST)
        self._sgctl("apply", "-f", str(manifest))
        for server, (address, attached) in SERVERS.items():
            chosen = [word for group in attached for word in ("--group", group)]
            self._sgctl("server", "create", server, "--address", address, "--agent", AGENT, *chosen, "--wait")

    def show_connections(self) -> None:
        """Connect, and see what the kernel lets through."""
        self._checks.say("\nReal connections between the namespaces")
        checks, database = self._checks, self._database
        page = self._web.PAGE
        checks.check("curl: client to web-1, port 80", page, self._curl(CLIENT, WEB_PORT))
        checks.check("curl: client to web-1, port 8080, which listens", NO_ANSWER, self._curl(CLIENT, OTHER_PORT))
        checks.check("curl: app-1 to web-1, port 80", page, self._curl("app-1", WEB_PORT))
        checks.check("ping: client to web-1, which has the group", "answered", self._ping(CLIENT, "web-1"))
        checks.check("ping: client to db-1, which has not", NO_ANSWER, self._ping(CLIENT, "db-1"))
        checks.check("database: web-1 asks it", database.answer, database.ask(self._namespaces.name("web-1")))
        checks.check("database: app-1 asks it", NO_ANSWER, database.ask(self._namespaces.name("app-1")))
        checks.check("database: client asks it", NO_ANSWER, database.ask(self._namespaces.name(CLIENT)))
        self._sgctl("attach", "app-1", "web-servers", "--wait")
        checks.check("database: app-1 has joined the web servers", database.answer, database.ask(self._namespaces.name("app-1")))
        self._sgctl("detach", "app-1", "web-servers", "--wait")
        checks.check("database: app-1 has left them", NO_ANSWER, database.ask(self._namespaces.name("app-1")))

    def stop_a_download(self) -> list[float]:
        """Delete the HTTP rule under a running download, several times; return milliseconds from the call to the last packet."""
        self._checks.say("\nThe HTTP rule deleted under a running download")
        took_ms = []
        arrivals = Arrivals(self._namespaces.name(CLIENT), HOSTS["web-1"])
        running = download(self._namespaces.name(CLIENT), f"http://{HOSTS['web-1']}/download")
        try:
            for round_ in range(1, ROUNDS + 1):
                runs = "runs" if arrivals.wait_for_one(RUN_TIMEOUT_S) else "stands still"
                rule = self._http_rule()
                begun_ns = time.time_ns()
                self._rules.DeleteRule(rules.DeleteRuleRequest(project=PROJECT, id=rule.id))
                last_ns = arrivals.wait_for_silence(begun_ns, SILENCE_S, RUN_TIMEOUT_S)
                fresh = self._curl(CLIENT, WEB_PORT)
                self._checks.check(f"round {round_}: the download before", "runs", runs)
                self._checks.check(f"round {round_}: the rule is deleted", "stops", "stops" if last_ns else "goes on")
                self._checks.check(f"round {round_}: a new connection", NO_ANSWER, fresh)
                if last_ns:
                    took_ms.append((last_ns - begun_ns) / 1e6)
                back = self._rules.CreateRule(rules.CreateRuleRequest(project=PROJECT, group_id=rule.group_id, rule=rule.spec))
                self._rulesets.WaitForRevision(rulesets.WaitForRevisionRequest(revision=back.revision))
            goes_on = arrivals.wait_for_one(RUN_TIMEOUT_S) and running.poll() is None
            self._checks.check("the same download, the rule is back", "goes on", "goes on" if goes_on else "does not")
        finally:
            running.kill()
            running.wait()
            arrivals.close()
        shown = ", ".join(f"{value:.1f}" for value in took_ms)
        self._checks.say(f"  from the call to delete to the last packet that reached the client: {shown} ms")
        return took_ms

    def outlive_everybody(self) -> None:
        """Kill the controller, then the agent; the kernel goes on."""
        self._checks.say("\nController and agent killed: the kernel keeps enforcing")
        self._stack.controller.kill()
        self._stack.agents[AGENT].kill()
        self._checks.check("curl: client to web-1, port 80", self._web.PAGE, self._curl(CLIENT, WEB_PORT))
        self._checks.check("curl: client to web-1, port 8080", NO_ANSWER, self._curl(CLIENT, OTHER_PORT))
        self._checks.check("database: client asks it", NO_ANSWER, self._database.ask(self._namespaces.name(CLIENT)))

    def _sgctl(self, *arguments: str) -> None:
        run_sgctl(self._checks, self._environment, *arguments)

    def _curl(self, host: str, port: int) -> str:
        return curl(self._namespaces.name(host), f"http://{HOSTS['web-1']}:{port}/page")

    def _ping(self, host: str, other: str) -> str:
        return ping(self._namespaces.name(host), HOSTS[other])

    def _http_rule(self) -> types.Rule:
        group = self._groups.ListGroups(groups.ListGroupsRequest(project=PROJECT, name="web-servers")).groups[0]
        listed = self._rules.ListRules(rules.ListRulesRequest(project=PROJECT, group_id=group.id)).rules
        return next(rule for rule in listed if rule.spec.ports.first == WEB_PORT)


class Arrivals:
    """The packets that reach a namespace from an address, with the kernel's time of arrival."""

    def __init__(self, namespace: str, source: str) -> None:
        self._source = socket.inet_aton(source)
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def close(self) -> None:
        self._socket.close()

    def wait_for_one(self, timeout_s: float) -> bool:
        """Return whether one comes, those aside that had come before."""
        since_ns = time.time_ns()
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            at_ns = self._next(left)
            if at_ns is not None and at_ns > since_ns:
                return True
        return False

    def wait_for_silence(self, since_ns: int, silence_s: float, timeout_s: float) -> int | None:
        """Return when the last one came before ``silence_s`` without any, in nanoseconds since the epoch; None if they go on.

        ``since_ns`` if none came after that.
        """
        last_ns = since_ns
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            at_ns = self._next(silence_s)
            if at_ns is None:
                return last_ns
            last_ns = max(last_ns, at_ns)
        return None

    def _next(self, timeout_s: float) -> int | None:
        """Return when the next one came, None if none comes in time."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                packet, told, _, _ = self._socket.recvmsg(64, socket.CMSG_SPACE(_TIMESPEC.size))
            except TimeoutError:
                return None
            # Of an IPv4 header, the source.
            if packet[12:16] == self._source and told:
                seconds, nanoseconds = _TIMESPEC.unpack(told[0][2][: _TIMESPEC.size])
                return int(seconds) * 1_000_000_000 + int(nanoseconds)
        return None


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("made_by", type=int)
@click.option("--json", "as_json", is_flag=True)
def command(folder: Path, made_by: int, as_json: bool) -> None:
    """Run the steps in the router's namespace, among the namespaces that the process MADE_BY has made, with files in FOLDER."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    checks = Checks(quiet=as_json)
    took_ms: list[float] = []
    try:
        with Stack(folder, [], tls=True) as stack:
            checks.say(f"A controller on {stack.controller.address}, and an agent that programs the kernel of the router")
            ports = [word for server in SERVERS for word in ("--interface", f"{PROJECT}/{server}=to-{server}")]
            stack.start_agent(AGENT, "--enforce", "nftables", *ports)
            demo = KernelDemo(stack, Namespaces(HOSTS, made_by=made_by), checks, folder)
            demo.load()
            demo.show_connections()
            took_ms = demo.stop_a_download()
            demo.outlive_everybody()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except (StackError, grpc.RpcError) as error:
        checks.check("the demo runs to its end", "yes", f"no: {error}")
    if as_json:
        median = round(statistics.median(took_ms), 3) if took_ms else None
        every = [round(value, 3) for value in took_ms]
        report = {"checks": checks.rows, "delete_to_last_packet_ms": median, "delete_to_last_packet_ms_all": every}
        click.echo(json.dumps({**report, "ok": checks.ok}))
    else:
        held = sum(row["expected"] == row["got"] for row in checks.rows)
        click.echo(f"\n{held} of {len(checks.rows)} checks hold, in {time.monotonic() - started:.1f} s.")
    sys.exit(0 if checks.ok else 1)


if __name__ == "__main__":
    command()
