"""What people see of real packets, with the agent, the controller and sgctl as processes: flows, observe, explain, stats."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

from agent_world import ACK, SYN_ACK, reply, tcp
from enforcing import AGENT, CLIENT, WEB4, passes
from netns import World
from running_system import System, wait_until

from secgroups.agent.flow import Direction, Packet
from secgroups.agent.packets import packet_message
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

DEADLINE_S = 30.0


class Sgctl:
    """sgctl, asking the agent."""

    def __init__(self, system: System) -> None:
        self._at = ["--agent-address", system.stack.agents[AGENT].address]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "secgroups.cli", *arguments, *self._at]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def do(self, *arguments: str) -> str:
        """Return what it says; AssertionError if it fails."""
        out, errors, code = self.end(self.start(*arguments))
        assert code == 0, errors
        return out

    @staticmethod
    def end(running: subprocess.Popen[str]) -> tuple[str, str, int]:
        out, errors = running.communicate(timeout=DEADLINE_S)
        return out, errors, running.returncode


@pytest.fixture
def sgctl(system: System) -> Sgctl:
    return Sgctl(system)


@contextmanager
def watched(world: World, sgctl: Sgctl, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``sgctl observe``, from when the kernel tells of packets."""
    running = sgctl.start("observe", *arguments)
    try:
        wait_until(lambda: "group 7710" in world.nft("list", "ruleset") or running.poll() is not None, "the kernel tells")
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=DEADLINE_S)


def test_observe_shows_real_packets_that_are_denied(system: System, world: World, sgctl: Sgctl) -> None:
    group = system.group("web", 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    with watched(world, sgctl, "--first", "1", "--reason", "no_rule", "-o", "json") as observed:
        assert passes(world, tcp(CLIENT, WEB4, 80))
        assert not passes(world, tcp(CLIENT, WEB4, 80, SYN_ACK, source_port=40_001))
        assert not passes(world, tcp(CLIENT, WEB4, 81, source_port=40_002))
        out, errors, code = sgctl.end(observed)
    assert code == 0, errors
    event = json.loads(out)
    packet = event["packet"]
    assert (event["action"], event["reason"], packet["server"], packet["direction"]) == (
        "ACTION_DENY",
        "REASON_NO_RULE",
        f"{system.project}/web",
        "DIRECTION_INGRESS",
    )
    assert (packet["source"], packet["source_port"], packet["destination_port"]) == (CLIENT, 40_002, 81)
    wait_until(lambda: "group 7710" not in world.nft("list", "ruleset"), "nothing is logged when nobody watches")


def test_observe_shows_what_is_allowed_to_open_a_connection(system: System, world: World, sgctl: Sgctl) -> None:
    group = system.group("web")
    rule = system.rule(group, 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    with watched(world, sgctl, "--first", "1", "--rule", rule[:8], "-o", "json") as observed:
        assert not passes(world, tcp(CLIENT, WEB4, 81))
        assert passes(world, tcp(CLIENT, WEB4, 80))
        out, errors, code = sgctl.end(observed)
    assert code == 0, errors
    event = json.loads(out)
    assert (event["reason"], event["rule_id"], event["opened"]) == ("REASON_NEW", rule, True)


def test_what_the_kernel_does_not_tell_of_is_refused_and_said_so(system: System, sgctl: Sgctl) -> None:
    _, errors, code = sgctl.end(sgctl.start("observe", "--reason", "established"))
    assert code != 0
    assert "the kernel does not tell of ESTABLISHED" in errors
    assert "NEW" in errors


def test_a_watch_ends_with_the_agent_and_leaves_no_logging(system: System, world: World, sgctl: Sgctl) -> None:
    system.wait_in_force(system.server("web", WEB4, AGENT, system.group("web", 80)))
    with watched(world, sgctl) as observed:
        system.stack.agents[AGENT].stop()
        _, errors, code = sgctl.end(observed)
    assert code != 0
    assert "the agent stops" in errors
    assert "group 7710" not in world.nft("list", "ruleset")
    assert "hook" in world.nft("list", "ruleset")


def test_flows_and_figures_are_those_of_real_packets(system: System, world: World, sgctl: Sgctl) -> None:
    group = system.group("web")
    rule = system.rule(group, 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    for packet in established():
        assert passes(world, packet)
    assert passes(world, tcp(CLIENT, WEB4, 80, source_port=40_001))
    told = json.loads(sgctl.do("agent", "flows", "--server", f"{system.project}/web", "-o", "json"))
    assert sorted((flow["remote_port"], flow["state"], flow["rule_id"]) for flow in told) == [
        (40_000, "FLOW_STATE_ESTABLISHED", rule),
        (40_001, "FLOW_STATE_SYN_SENT", rule),
    ]
    (line,) = sgctl.do("agent", "flows", "--state", "established").splitlines()
    assert f"ESTABLISHED src={CLIENT} dst={WEB4} sport=40000 dport=80" in line
    assert sgctl.do("agent", "flows", "--remote", "198.51.100.0/24") == ""
    stats = system.stats(AGENT)
    assert dict(stats.flows_by_state) == {"ESTABLISHED": 1, "SYN_SENT": 1}
    system.wait_in_force(system.delete_rule(rule))
    assert len(sgctl.do("agent", "flows", "--state", "revoked").splitlines()) == 2
    assert dict(system.stats(AGENT).flows_by_state) == {"REVOKED": 2}


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that are started from now on answer Prometheus."""
    monkeypatch.setenv("SECGROUPS_AGENT_METRICS_LISTEN", "127.0.0.1:0")


def test_metrics_count_what_the_kernel_denies(metrics: None, system: System, world: World) -> None:
    system.wait_in_force(system.server("web", WEB4, AGENT, system.group("web", 80)))
    assert passes(world, tcp(CLIENT, WEB4, 80))
    assert not passes(world, tcp(CLIENT, WEB4, 81))
    address = json.loads(system.stack.agents[AGENT].ready_file.read_text())["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as answer:
        told = answer.read().decode().splitlines()
    assert 'secgroups_agent_verdicts_total{reason="NO_RULE"} 1.0' in told
    connections = Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text().strip()
    assert f"secgroups_agent_flows {connections}.0" in told
    assert connections != "0"


def test_explain_tells_of_the_connection_that_a_packet_belongs_to(system: System, world: World) -> None:
    group = system.group("web")
    rule = system.rule(group, 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    *_, last = established()
    packet = packet_message(replace(last, server=f"{system.project}/web", direction=Direction.INGRESS))
    request, address = pb.ExplainRequest(packet=packet), system.stack.agents[AGENT].address

    def explained() -> tuple[str, str]:
        answer = system.ask(VerdictServiceStub, "Explain", request, address)
        return types.Reason.Name(answer.reason), answer.rule_id

    assert explained() == ("REASON_INVALID_STATE", "")
    for each in established():
        assert passes(world, each)
    assert explained() == ("REASON_ESTABLISHED", rule)
    system.wait_in_force(system.delete_rule(rule))
    assert explained() == ("REASON_REVOKED", "")


def established() -> list[Packet]:
    opening = tcp(CLIENT, WEB4, 80)
    return [opening, reply(opening, tcp_flags=SYN_ACK), tcp(CLIENT, WEB4, 80, ACK)]
