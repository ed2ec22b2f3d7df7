"""The main job in half a minute: real processes, the three common configurations, verdicts with their rules, a rule deleted.

``python -m secgroups.lab.demo [--json] [--kernel]``. With ``--json`` the last thing on stdout is one object: ``checks`` (name,
expected, got), ``delete_to_deny_ms`` (median), ``delete_to_deny_ms_all`` and ``ok``. Exit status 0 only if every check holds. With
``--kernel`` another demo is shown: ``kernel_demo``.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import click
import grpc

from secgroups.lab import kernel_demo
from secgroups.lab.demo_checks import Checks, run_sgctl
from secgroups.lab.stack import Stack, StackError, environment_of
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import group_service_pb2_grpc as groups_grpc
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import rule_service_pb2_grpc as rules_grpc
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import ruleset_service_pb2_grpc as rulesets_grpc
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as verdicts
from secgroups.v1 import verdict_service_pb2_grpc as verdicts_grpc

PROJECT = "demo"
CAPTURE = Path(__file__).resolve().parents[3] / "tests" / "captures" / "http_tcp.pcap"

OFFICE = "203.0.113.7"
STRANGER = "198.51.100.7"

MANIFEST = """\
groups:
  web-servers:
    description: SSH from the office, HTTP and HTTPS from anywhere
    rules:
      - {direction: ingress, protocol: tcp, ports: 22, remote: 203.0.113.0/24}
      - {direction: ingress, protocol: tcp, ports: 80, remote: any}
      - {direction: ingress, protocol: tcp, ports: 443, remote: any}
      - {direction: egress, protocol: any, remote: any}
  database:
    description: MySQL from the web servers only
    rules:
      - {direction: ingress, protocol: tcp, ports: 3306, remote: {group: web-servers}}
      - {direction: egress, protocol: any, remote: any}
  ping:
    description: ICMP from anywhere
    rules:
      - {direction: ingress, protocol: icmp, remote: any}
"""

# server: address, agent, groups (none: default)
SERVERS = {
    "web-1": ("10.0.0.9", "hypervisor-1", ["web-servers", "ping"]),
    "web-2": ("10.0.0.10", "hypervisor-1", ["web-servers"]),
    "db-1": ("10.0.0.20", "hypervisor-2", ["database"]),
    "app-1": ("10.0.0.30", "hypervisor-1", []),
    "app-2": ("10.0.0.31", "hypervisor-2", []),
}

ROUNDS = 5
POLL_TIMEOUT_S = 5.0


class Demo:
    """The steps, against a stack that runs."""

    def __init__(self, stack: Stack, checks: Checks, folder: Path) -> None:
        self._stack = stack
        self._checks = checks
        self._folder = folder
        self._environment = environment_of(stack, PROJECT)
        self._controller = stack.channel()
        self._rules = rules_grpc.RuleServiceStub(self._controller)
        self._rulesets = rulesets_grpc.RulesetServiceStub(self._controller)
        self._agents = {
            name: verdicts_grpc.VerdictServiceStub(grpc.insecure_channel(agent.address)) for name, agent in stack.agents.items()
        }
        self._source_port = 40_000

    def sgctl(self, *arguments: str) -> str:
        """Run the command line as a user would and return its output. StackError if it fails."""
        return run_sgctl(self._checks, self._environment, *arguments)

    def load(self) -> None:
        """Load the three common configurations and the servers."""
        self._checks.say("\nThree common configurations: a web server, a database behind it, ping")
        manifest = self._folder / "demo.yaml"
        manifest.write_text(MANIFEST)
        self._show(self.sgctl("apply", "-f", str(manifest)))
        for name, (address, agent, attached) in SERVERS.items():
            chosen = [word for group in attached for word in ("--group", group)]
            self.sgctl("server", "create", name, "--address", address, "--agent", agent, *chosen, "--wait")
        again = self.sgctl("apply", "-f", str(manifest))
        self._checks.check("the same file again changes nothing", "unchanged", "changed" if "created" in again else "unchanged")
        self._show(self.sgctl("server", "rules", "web-1"))

    def show_verdicts(self) -> None:
        """Ask the agents about packets, and show which rule decided."""
        self._checks.say("\nVerdicts of the agents, with the group whose rule decided")
        for name, expected, source, destination, protocol, port in (
            ("web: SSH from the office", "ALLOW NEW web-servers", OFFICE, "web-1", "tcp", 22),
            ("web: SSH from elsewhere", "DENY NO_RULE", STRANGER, "web-1", "tcp", 22),
            ("web: HTTP from anywhere", "ALLOW NEW web-servers", STRANGER, "web-1", "tcp", 80),
            ("web: HTTPS from anywhere", "ALLOW NEW web-servers", STRANGER, "web-2", "tcp", 443),
            ("web: port 8080 from anywhere", "DENY NO_RULE", STRANGER, "web-1", "tcp", 8080),
            ("database: MySQL from a web server", "ALLOW NEW database", "web-1", "db-1", "tcp", 3306),
            ("database: MySQL from anywhere", "DENY NO_RULE", STRANGER, "db-1", "tcp", 3306),
            ("database: MySQL from another server", "DENY NO_RULE", "app-1", "db-1", "tcp", 3306),
            ("database: SSH from a web server", "DENY NO_RULE", "web-1", "db-1", "tcp", 22),
            ("ping: the server that has the group", "ALLOW NEW ping", STRANGER, "web-1", "icmp", 0),
            ("ping: the server that has not", "DENY NO_RULE", STRANGER, "web-2", "icmp", 0),
            ("default group: its members reach one another", "ALLOW NEW default", "app-1", "app-2", "tcp", 9000),
            ("default group: and back", "ALLOW NEW default", "app-2", "app-1", "udp", 53),
            ("default group: a server outside of it", "DENY NO_RULE", "web-1", "app-1", "tcp", 9000),
            ("default group: anybody else", "DENY NO_RULE", STRANGER, "app-2", "tcp", 9000),
        ):
            self._checks.check(name, expected, self.flow(source, destination, protocol, port))

    def replay(self) -> None:
        """Run a recorded HTTP connection, and an attempt at port 22, through the rules of web-1."""
        self._checks.say("\nA real capture, replayed through the rules of web-1")
        report = json.loads(self.sgctl("replay", str(CAPTURE), "--server", "web-1", "-o", "json"))
        for flow in report["flows"]:
            allowed, denied = (flow[f"ingress_{what}"] + flow[f"egress_{what}"] for what in ("allowed", "denied"))
            self._checks.say(f"    {flow['flow']:<42} {allowed} allowed, {denied} denied")
        page, knock = (next(flow for flow in report["flows"] if flow["local_port"] == port) for port in (80, 22))
        got = f"{page['action']} {page['reason']}, {page['ingress_denied'] + page['egress_denied']} denied"
        self._checks.check("replay: every packet of the HTTP connection passes", "ALLOW NEW, 0 denied", got)
        self._checks.check("replay: the attempt at SSH in it", "DENY NO_RULE", f"{knock['action']} {knock['reason']}")

    def delete_and_deny(self) -> list[float]:
        """Delete the SSH rule under an established connection, several times; return the milliseconds until it was denied."""
        self._checks.say("\nA rule deleted under an established connection")
        took_ms = []
        for round_ in range(ROUNDS):
            port = self._next_port()
            states = [self._tcp(port, flags) for flags in ("SYN", "SYN,ACK", "ACK")]
            rule = self._ssh_rule()
            started = time.perf_counter()
            self._rules.DeleteRule(rules.DeleteRuleRequest(project=PROJECT, id=rule.id))
            got = self._poll(port)
            took_ms.append((time.perf_counter() - started) * 1000)
            fresh = self.flow(OFFICE, "web-1", "tcp", 22)
            back = self._rules.CreateRule(rules.CreateRuleRequest(project=PROJECT, group_id=rule.group_id, rule=rule.spec))
            self._rulesets.WaitForRevision(rulesets.WaitForRevisionRequest(revision=back.revision))
            resumed = self._tcp(port, "ACK")
            if round_ == 0:
                self._checks.check("connection before", "ALLOW NEW, ALLOW ESTABLISHED, ALLOW ESTABLISHED", ", ".join(states))
                self._checks.check("same connection, rule deleted", "DENY REVOKED", got)
                self._checks.check("new connection, rule deleted", "DENY NO_RULE", fresh)
                self._checks.check("same connection, rule back", "ALLOW ESTABLISHED", resumed)
            elif (got, fresh, resumed) != ("DENY REVOKED", "DENY NO_RULE", "ALLOW ESTABLISHED"):
                self._checks.check(
                    f"round {round_ + 1}", "DENY REVOKED, DENY NO_RULE, ALLOW ESTABLISHED", f"{got}, {fresh}, {resumed}"
                )
        shown = ", ".join(f"{value:.1f}" for value in took_ms)
        self._checks.say(f"  from the call to delete until the connection's packet was denied: {shown} ms")
        return took_ms

    def outlive_controller(self) -> None:
        """Kill the controller; the agents go on."""
        self._checks.say("\nThe controller killed: agents keep enforcing what they know")
        self._stack.controller.kill()
        self._checks.check("HTTP to web-1 without a controller", "ALLOW NEW web-servers", self.flow(STRANGER, "web-1", "tcp", 80))
        self._checks.check("MySQL to db-1 without a controller", "DENY NO_RULE", self.flow(STRANGER, "db-1", "tcp", 3306))

    def flow(self, source: str, destination: str, protocol: str, port: int) -> str:
        """Return the verdict of a new flow: egress of the source, if it is one of ours, then ingress of the destination."""
        source_address, destination_address = (SERVERS[end][0] if end in SERVERS else end for end in (source, destination))
        packet = verdicts.Packet(source=source_address, destination=destination_address)
        packet.protocol = types.Protocol.Value(f"PROTOCOL_{protocol.upper()}")
        if protocol == "icmp":
            packet.icmp_type = 8 if ip_address(source_address).version == 4 else 128
            packet.icmp_id = self._next_port()
        else:
            packet.source_port, packet.destination_port = self._next_port(), port
        if protocol == "tcp":
            packet.tcp_flags.append(verdicts.TCP_FLAG_SYN)
        answer = "no server"
        for server, direction in ((source, types.DIRECTION_EGRESS), (destination, types.DIRECTION_INGRESS)):
            if server in SERVERS:
                answer = self._judge(server, direction, packet)
                if answer.startswith("DENY"):
                    break
        return answer

    def _judge(self, server: str, direction: types.Direction.ValueType, packet: verdicts.Packet) -> str:
        """Ask for the grounds, then for the verdict, which must agree."""
        packet.server, packet.direction = f"{PROJECT}/{server}", direction
        agent = self._agents[SERVERS[server][1]]
        grounds = agent.Explain(verdicts.ExplainRequest(packet=packet))
        verdict = agent.Decide(verdicts.DecideRequest(packet=packet))
        if (grounds.action, grounds.reason, grounds.rule_id) != (verdict.action, verdict.reason, verdict.rule_id):
            return f"Explain said {_named(grounds)}, Decide {_named(verdict)}"
        return f"{_named(verdict)} {grounds.group_name}".rstrip()

    def _tcp(self, source_port: int, flags: str) -> str:
        """Return the verdict of one packet of the connection from the office to web-1, port 22; an answer if it is a SYN,ACK."""
        packet = verdicts.Packet(
            server=f"{PROJECT}/web-1",
            direction=types.DIRECTION_INGRESS,
            source=OFFICE,
            destination=SERVERS["web-1"][0],
            protocol=types.PROTOCOL_TCP,
            source_port=source_port,
            destination_port=22,
            tcp_flags=[verdicts.TcpFlag.Value(f"TCP_FLAG_{flag}") for flag in flags.split(",")],
        )
        if flags == "SYN,ACK":
            packet.direction = types.DIRECTION_EGRESS
            packet.source, packet.destination = packet.destination, packet.source
            packet.source_port, packet.destination_port = packet.destination_port, packet.source_port
        return _named(self._agents["hypervisor-1"].Decide(verdicts.DecideRequest(packet=packet)))

    def _poll(self, source_port: int) -> str:
        """Send packets of the connection until one is denied, for ``POLL_TIMEOUT_S`` at most; return the last verdict."""
        deadline = time.monotonic() + POLL_TIMEOUT_S
        while (got := self._tcp(source_port, "ACK")).startswith("ALLOW") and time.monotonic() < deadline:
            pass
        return got

    def _ssh_rule(self) -> types.Rule:
        named = groups.ListGroupsRequest(project=PROJECT, name="web-servers")
        group = groups_grpc.GroupServiceStub(self._controller).ListGroups(named).groups[0]
        listed = self._rules.ListRules(rules.ListRulesRequest(project=PROJECT, group_id=group.id)).rules
        return next(rule for rule in listed if rule.spec.ports.first == 22)

    def _next_port(self) -> int:
        self._source_port += 1
        return self._source_port

    def _show(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self._checks.say(f"    {line}")


def _named(verdict: verdicts.DecideResponse | verdicts.ExplainResponse) -> str:
    action = types.Action.Name(verdict.action).removeprefix("ACTION_")
    return f"{action} {types.Reason.Name(verdict.reason).removeprefix('REASON_')}"


@contextmanager
def _started(folder: Path, checks: Checks) -> Iterator[Stack]:
    checks.say("Starting a controller on a fresh SQLite file and two agents ...")
    with Stack(folder, ["hypervisor-1", "hypervisor-2"], tls=True) as stack:
        agents = ", ".join(f"{name} on {agent.address}" for name, agent in stack.agents.items())
        checks.say(f"  controller on {stack.controller.address}, {agents}")
        yield stack


@click.command()
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object; progress goes to stderr.")
@click.option("--kernel", is_flag=True, help="Real packets between network namespaces, filtered by the kernel; needs root.")
def command(as_json: bool, kernel: bool) -> None:
    """Show the main job with real processes and check every step."""
    if kernel:
        sys.exit(kernel_demo.run_in_namespaces(as_json=as_json))
    # Whoever runs out of patience ends us with SIGTERM: the processes we started must go with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    checks = Checks(quiet=as_json)
    took_ms: list[float] = []
    try:
        with tempfile.TemporaryDirectory(prefix="secgroups-demo-") as folder, _started(Path(folder), checks) as stack:
            demo = Demo(stack, checks, Path(folder))
            demo.load()
            demo.show_verdicts()
            demo.replay()
            took_ms = demo.delete_and_deny()
            demo.outlive_controller()
    except (StackError, grpc.RpcError) as error:
        checks.check("the demo runs to its end", "yes", f"no: {error}")
    ok = checks.ok
    if as_json:
        median = round(statistics.median(took_ms), 3) if took_ms else None
        every = [round(value, 3) for value in took_ms]
        click.echo(json.dumps({"checks": checks.rows, "delete_to_deny_ms": median, "delete_to_deny_ms_all": every, "ok": ok}))
    else:
        held = sum(row["expected"] == row["got"] for row in checks.rows)
        click.echo(f"\n{held} of {len(checks.rows)} checks hold, in {time.monotonic() - started:.1f} s. Next: sgctl dev")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    command()
