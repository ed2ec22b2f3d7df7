"""``sgctl agent flows``, ``sgctl agent stats`` and ``sgctl observe`` against agents that run as processes of their own."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import yaml
from cli_world import PATIENCE_S, Done, Sgctl, until

from secgroups.lab.stack import Stack
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

OFFICE, STRANGER = "203.0.113.7", "198.51.100.1"
_SOURCE_PORTS = itertools.count(20_000)


class Traffic:
    """Packets at server w1 of a project, as agent a1 sees them."""

    def __init__(self, stub: VerdictServiceStub, project: str, agent: str) -> None:
        self._stub = stub
        self._server = f"{project}/w1"
        self.at = ["--agent-address", agent]

    def syn(self, source: str, port: int = 22, source_port: int = 0) -> str:
        """Send a SYN from ``source`` and return the reason of its verdict."""
        packet = pb.Packet(
            server=self._server,
            direction=types.DIRECTION_INGRESS,
            source=source,
            destination="10.0.0.1",
            protocol=types.PROTOCOL_TCP,
            source_port=source_port or next(_SOURCE_PORTS),
            destination_port=port,
            tcp_flags=[pb.TCP_FLAG_SYN],
            length=60,
        )
        return types.Reason.Name(self._stub.Decide(pb.DecideRequest(packet=packet), timeout=PATIENCE_S).reason)


@pytest.fixture
def traffic(stack: Stack, fleet: Sgctl) -> Iterator[Traffic]:
    address = stack.agents["a1"].address
    with grpc.insecure_channel(address) as channel:
        yield Traffic(VerdictServiceStub(channel), fleet.project, address)


@pytest.fixture
def nobody() -> Iterator[str]:
    """Return an address at which nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


class TestFlows:
    """What the agent tracks."""

    def test_flows_are_shown_as_conntrack_does(self, fleet: Sgctl, traffic: Traffic) -> None:
        assert traffic.syn(OFFICE, source_port=1_025) == "REASON_NEW"
        rule = fleet.column("id", "rule", "list", "web", "--sort", "-direction")[0]
        done = fleet.do("agent", "flows", *traffic.at, "--server", "w1")
        (line,) = done.lines
        assert line.startswith("tcp      6 1")
        assert line.endswith(
            " SYN_SENT src=203.0.113.7 dst=10.0.0.1 sport=1025 dport=22 packets=1 bytes=60 [UNREPLIED]"
            f" src=10.0.0.1 dst=203.0.113.7 sport=22 dport=1025 packets=0 bytes=0 server={fleet.project}/w1 rule={rule[:18]}"
        )
        assert done.err == "sgctl: 1 flow shown\n"

    @pytest.mark.parametrize(
        ("expected", "wanted"),
        [
            ([1_025, 1_026], []),
            ([1_025], ["--remote", OFFICE]),
            ([1_025, 1_026], ["--remote", "203.0.113.0/24"]),
            ([], ["--remote", STRANGER]),
            ([1_025, 1_026], ["--port", "22", "--protocol", "tcp", "--state", "syn_sent"]),
            ([], ["--port", "23"]),
            ([], ["--protocol", "udp"]),
            ([], ["--state", "REVOKED"]),
            ([1_025], ["--limit", "1"]),
            ([], ["--rule", "ffffffff"]),
        ],
        ids=str,
    )
    def test_options_choose_flows(self, fleet: Sgctl, traffic: Traffic, expected: list[int], wanted: list[str]) -> None:
        traffic.syn(OFFICE, source_port=1_025)
        traffic.syn("203.0.113.8", source_port=1_026)
        listed = fleet.do("agent", "flows", *traffic.at, "--server", "w1", *wanted, "-o", "json").json
        assert [flow["remote_port"] for flow in listed] == expected

    def test_the_beginning_of_a_rule_id_and_a_server_with_its_project_will_do(self, fleet: Sgctl, traffic: Traffic) -> None:
        traffic.syn(OFFICE, source_port=1_025)
        (rule,) = fleet.column("rule", "agent", "flows", *traffic.at, "--server", "w1")
        at = ["agent", "flows", *traffic.at, "--server", f"{fleet.project}/w1"]
        assert len(fleet.do(*at, "--rule", rule.upper()).lines) == 1
        assert fleet.do(*at, "--rule", rule[:-1] + "f").lines == []

    def test_flows_come_in_the_forms_of_other_lists(self, fleet: Sgctl, traffic: Traffic) -> None:
        for port in (1_025, 1_026):
            traffic.syn(OFFICE, source_port=port)
        at = ["agent", "flows", *traffic.at, "--server", "w1"]
        (found, _) = yaml.safe_load(fleet.do(*at, "-o", "yaml").out)
        assert (found["server"], found["state"], found["opening_packets"]) == (
            f"{fleet.project}/w1",
            "FLOW_STATE_SYN_SENT",
            "1",
        )
        columns = ["--columns", "local,remote,state", "--sort", "-remote"]
        assert fleet.do(*at, "-o", "csv", *columns).lines == [
            "local,remote,state",
            "10.0.0.1:22,203.0.113.7:1026,SYN_SENT",
            "10.0.0.1:22,203.0.113.7:1025,SYN_SENT",
        ]
        assert fleet.do(*at, "-o", "table").lines[0].split()[:3] == ["SERVER", "PROTOCOL", "DIRECTION"]
        assert "RULE ID" in fleet.do(*at, "-o", "wide").lines[0]
        assert fleet.fail(*at, "--sort", "remote") == "--columns and --sort are for -o table, wide and csv"

    def test_a_server_by_its_name(self, fleet: Sgctl, stack: Stack, traffic: Traffic) -> None:
        agent = ["--agent-address", stack.agents["a2"].address]
        assert fleet.do("agent", "flows", *agent, "--server", "database").lines == []
        assert fleet.fail("agent", "flows", *agent, "--server", "nobody").startswith("there is no server 'nobody'")
        assert fleet.fail("agent", "flows", *agent, "--server", "twin").startswith("2 servers are called 'twin'")

    def test_without_a_controller_a_server_is_named_by_its_id(
        self, fleet: Sgctl, traffic: Traffic, nobody: str, run_here: Callable[..., Done]
    ) -> None:
        traffic.syn(OFFICE)
        at = ["--controller", nobody, "-p", fleet.project, "agent", "flows", *traffic.at]
        done = run_here(*at, "--server", "w1")
        assert (done.status, len(done.lines)) == (0, 1)
        assert f"controller {nobody} can't be reached" in done.err
        assert "w1 is taken for the id of a server" in done.err


class TestStats:
    """The agent's own figures."""

    def test_what_is_in_force_and_how_full_the_table_is_are_lines_of_their_own(self, fleet: Sgctl, traffic: Traffic) -> None:
        traffic.syn(OFFICE)
        figures = fleet.do("agent", "stats", *traffic.at, "-o", "json").json
        shown = fleet.do("agent", "stats", *traffic.at).out.partition("\n\n")[0]
        facts = {key: " ".join(words) for key, *words in map(str.split, shown.splitlines())}
        assert facts.pop("heard").endswith("s ago")
        assert facts == {
            "agent": "a1",
            "connected": "yes",
            # The attachment of this test's servers has been waited for, and nobody else changes anything meanwhile.
            "applied": fleet.column("applied", "agent", "show", "a1")[0],
            "from_cache": "no",
            "held_back": "",
            **{key: str(figures[key]) for key in ("servers", "groups", "sets", "flows", "flows_max", "evicted")},
        }
        assert 0 < int(facts["flows"]) < int(facts["flows_max"])

    def test_verdicts_are_counted_by_reason_and_flows_by_state(self, fleet: Sgctl, traffic: Traffic) -> None:
        def counted() -> dict[str, int]:
            _, states, reasons = fleet.do("agent", "stats", *traffic.at).out.split("\n\n")
            assert states.splitlines()[0].split() == ["STATE", "FLOWS"]
            assert reasons.splitlines()[0].split() == ["REASON", "VERDICTS"]
            rows = [line.split() for line in (*states.splitlines()[1:], *reasons.splitlines()[1:])]
            return {name: int(count) for name, count in rows}

        traffic.syn(OFFICE)
        traffic.syn(STRANGER)
        before = counted()
        assert traffic.syn(OFFICE) == "REASON_NEW"
        for _ in range(2):
            assert traffic.syn(STRANGER) == "REASON_NO_RULE"
        after = counted()
        assert {name: after[name] - before[name] for name in ("NEW", "NO_RULE", "SYN_SENT")} == {
            "NEW": 1,
            "NO_RULE": 2,
            "SYN_SENT": 1,
        }

    def test_the_most_frequent_reason_comes_first(self, fleet: Sgctl, traffic: Traffic) -> None:
        at = ["agent", "stats", *traffic.at]
        traffic.syn(OFFICE)
        verdicts = fleet.do(*at, "-o", "json").json["verdicts"]
        # By name NEW would come before NO_RULE.
        for _ in range(1 + max(0, int(verdicts["REASON_NEW"]) - int(verdicts.get("REASON_NO_RULE", 0)))):
            traffic.syn(STRANGER)
        reasons = fleet.do(*at).out.split("\n\n")[2].splitlines()[1:]
        counts = [int(line.split()[1]) for line in reasons]
        assert counts == sorted(counts, reverse=True)
        names = [line.split()[0] for line in reasons]
        assert names.index("NO_RULE") < names.index("NEW")

    def test_what_each_rule_has_let_through_is_shown_where_there_is_room(self, fleet: Sgctl, traffic: Traffic) -> None:
        rule = fleet.column("id", "rule", "list", "web", "--sort", "-direction")[0]
        traffic.syn(OFFICE)
        at = ["agent", "stats", *traffic.at]
        assert [rule, "1", "60"] in [line.split() for line in fleet.do(*at, "-o", "wide").lines]
        assert rule not in fleet.do(*at).out
        assert {"rule_id": rule, "packets": "1", "bytes": "60"} in fleet.do(*at, "-o", "json").json["rules"]

    def test_it_comes_in_the_forms_of_other_shows(self, fleet: Sgctl, traffic: Traffic) -> None:
        at = ["agent", "stats", *traffic.at]
        assert fleet.do(*at, "-o", "name").lines == ["a1"]
        assert fleet.do(*at, "-o", "csv", "--columns", "agent,connected").lines == ["agent,connected", "a1,yes"]
        assert fleet.do(*at, "--columns", "connected").lines == ["connected  yes"]
        assert yaml.safe_load(fleet.do(*at, "-o", "yaml").out)["agent_id"] == "a1"
        assert fleet.fail(*at, "--sort", "agent") == "--sort is for lists"

    def test_an_agent_without_a_controller_answers_all_the_same(self, stack: Stack, sgctl: Sgctl, nobody: str) -> None:
        agent = stack.start_agent("lonely", "--controller", nobody)
        try:
            lines = sgctl.do("agent", "stats", "--agent-address", agent.address).lines
        finally:
            agent.stop()
        assert [line.split() for line in lines[:4]] == [
            ["agent", "lonely"],
            ["connected", "no"],
            ["heard", "never"],
            ["applied", "0"],
        ]


@pytest.mark.parametrize("command", [["agent", "flows"], ["agent", "stats"], ["observe"]], ids=" ".join)
class TestWhere:
    """Where the agent answers."""

    def test_an_agent_that_does_not_answer_is_one_line(self, sgctl: Sgctl, nobody: str, command: list[str]) -> None:
        told = sgctl.fail(*command, "--agent-address", nobody)
        assert told.startswith(f"agent {nobody} can't be reached: ")
        assert len(told.splitlines()) == 1

    def test_an_address_that_is_none_is_told(self, sgctl: Sgctl, command: list[str]) -> None:
        assert sgctl.fail(*command, "--agent-address", "here") == (
            "agent address 'here' is none; it is HOST:PORT, [IPV6]:PORT or unix:PATH"
        )

    def test_the_environment_names_the_agent(
        self, sgctl: Sgctl, nobody: str, command: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECGROUPS_AGENT", nobody)
        assert sgctl.fail(*command).startswith(f"agent {nobody} can't be reached: ")


@pytest.mark.parametrize("command", [["agent", "flows"], ["observe"]], ids=" ".join)
@pytest.mark.parametrize("port", ["0", "65536", "ssh"])
def test_a_value_that_is_none_is_told(sgctl: Sgctl, command: list[str], port: str) -> None:
    assert sgctl.fail(*command, "--port", port).startswith(f"--port: {port!r} is no port")


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process with the block, or when patience is."""
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()


def told(sgctl: Sgctl, traffic: Traffic, knock: Callable[[], Any], *arguments: str) -> list[str]:
    """Return what an observer prints that ends by itself, while ``knock`` sends packets until it has."""
    with sgctl.start("observe", *traffic.at, *arguments) as process, ended(process):
        assert process.stdout is not None
        assert process.stderr is not None
        # When the watch has begun can't be seen from outside.
        while process.poll() is None:
            knock()
        assert (process.returncode, process.stderr.read()) == (0, "")
        return process.stdout.read().splitlines()


@contextmanager
def seen_to_observe(sgctl: Sgctl, traffic: Traffic) -> Iterator[subprocess.Popen[str]]:
    """Give an observer that has told its first verdict."""
    with sgctl.start("observe", *traffic.at) as process, ended(process):
        first: list[str] = []
        reader = threading.Thread(target=lambda: first.append(process.stdout.readline()))
        reader.start()
        while reader.is_alive():
            traffic.syn(STRANGER)
        assert " DENY " in first[0]
        yield process


class TestObserve:
    """Verdicts as they are given."""

    def test_denials_are_told_and_nothing_else(self, fleet: Sgctl, traffic: Traffic) -> None:
        def knock() -> None:
            assert traffic.syn(OFFICE) == "REASON_NEW"
            assert traffic.syn(STRANGER) == "REASON_NO_RULE"

        lines = told(fleet, traffic, knock, "--server", "w1", "--first", "2")
        assert len(lines) == 2
        for line in lines:
            moment, source, arrow, *rest = line.split()
            assert (moment[-2:], source.startswith(f"{STRANGER}:"), arrow) == ("Z:", True, "->")
            assert " ".join(rest) == f"10.0.0.1:22 {fleet.project}/w1 ingress DENY NO_RULE (tcp SYN)"

    @pytest.mark.parametrize(
        ("expected", "wanted"),
        [
            ({"NEW", "NO_RULE"}, ["--all", "--first", "20"]),
            ({"NEW"}, ["--verdict", "allow", "--first", "2"]),
            ({"NEW"}, ["--reason", "new", "--reason", "established", "--first", "2"]),
            ({"NEW"}, ["--all", "--from-ip", OFFICE, "--to-ip", "10.0.0.0/8", "--first", "2"]),
            ({"NO_RULE"}, ["--all", "--ip", STRANGER, "--port", "22", "--protocol", "tcp", "--first", "2"]),
            ({"NO_RULE"}, ["--sample", "2", "--first", "2"]),
        ],
        ids=["all", "allowed", "two reasons", "addresses", "address and port", "a sample"],
    )
    def test_options_choose_verdicts(self, fleet: Sgctl, traffic: Traffic, expected: set[str], wanted: list[str]) -> None:
        def knock() -> None:
            traffic.syn(OFFICE)
            traffic.syn(STRANGER)

        lines = told(fleet, traffic, knock, "--server", f"{fleet.project}/w1", "-o", "json", *wanted)
        events = [json.loads(line) for line in lines]
        assert {event["reason"].removeprefix("REASON_") for event in events} == expected
        assert {event["packet"]["server"] for event in events} == {f"{fleet.project}/w1"}

    def test_a_rule_is_told_with_what_it_allows(self, fleet: Sgctl, traffic: Traffic) -> None:
        traffic.syn(OFFICE)
        (rule,) = fleet.column("rule", "agent", "flows", *traffic.at, "--server", "w1")
        (line,) = told(fleet, traffic, lambda: traffic.syn(OFFICE), "--rule", rule, "--first", "1")
        assert f"ALLOW NEW rule={rule} (tcp SYN)" in line

    def test_a_reason_of_an_action_that_is_not_asked_for_is_refused_by_the_agent(self, fleet: Sgctl, traffic: Traffic) -> None:
        said = fleet.fail("observe", *traffic.at, "--verdict", "deny", "--reason", "new")
        assert said.startswith("reasons: NEW is a reason to ALLOW, which is not asked for")

    def test_first_and_follow_exclude_each_other(self, fleet: Sgctl, traffic: Traffic) -> None:
        assert fleet.fail("observe", *traffic.at, "-f", "--first", "1") == (
            "--first ends what --follow would go on with: leave one out"
        )

    def test_all_and_a_verdict_exclude_each_other(self, fleet: Sgctl, traffic: Traffic) -> None:
        assert fleet.fail("observe", *traffic.at, "--all", "--verdict", "deny") == (
            "--all is whatever the verdict: leave --verdict out"
        )

    @pytest.mark.parametrize("option", ["--from-ip", "--to-ip", "--ip"])
    def test_a_prefix_that_is_none_is_told_by_the_name_of_its_option(self, fleet: Sgctl, traffic: Traffic, option: str) -> None:
        said = fleet.fail("observe", *traffic.at, "--ip", STRANGER, option, "office")
        assert said.startswith(f"{option}: 'office' is no CIDR")

    def test_ctrl_c_ends_it_quietly(self, fleet: Sgctl, traffic: Traffic) -> None:
        with seen_to_observe(fleet, traffic) as process:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
            # The end of the line with ^C.
            assert (process.returncode, err) == (130, "\n")
            assert all("NO_RULE" in line for line in out.splitlines())

    def test_a_closed_pipe_ends_it_quietly(self, fleet: Sgctl, traffic: Traffic) -> None:
        with seen_to_observe(fleet, traffic) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()

            def has_ended() -> bool:
                traffic.syn(STRANGER)
                return process.poll() is not None

            until(has_ended)
            assert (process.returncode, process.stderr.read()) == (141, "")


def test_an_agent_that_stops_is_told_to_who_observes_it(stack: Stack, sgctl: Sgctl) -> None:
    agent = stack.start_agent("short-lived")
    with grpc.insecure_channel(agent.address) as channel:
        traffic = Traffic(VerdictServiceStub(channel), sgctl.project, agent.address)
        with seen_to_observe(sgctl, traffic) as process:
            agent.stop()
            _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (2, f"error: agent {agent.address} can't be reached: the agent stops\n")
