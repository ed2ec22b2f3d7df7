"""What Prometheus reads from a controller and an agent, as processes, over HTTP."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2, group_service_pb2, ruleset_service_pb2, server_service_pb2
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

Samples = dict[tuple[str, tuple[str, ...]], float]


def process(folder: Path, name: str, *arguments: str) -> Process:
    return Process(name=name, arguments=list(arguments), ready_file=folder / f"{name}.ready", log_file=folder / f"{name}.log")


def metrics_address(of: Process) -> str:
    return str(json.loads(of.ready_file.read_text())["metrics_address"])


def scrape(of: Process) -> Samples:
    """Return the value of each sample by its name and the values of its labels, in the order of their names."""
    with urllib.request.urlopen(f"http://{metrics_address(of)}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    """A controller and an agent that guards one server, on which a rule came into force."""
    (tmp_path / "data").mkdir()
    (tmp_path / "state").mkdir()
    listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--heartbeat-s", "0.2"]
    controller = process(tmp_path, "controller", "secgroups.controller", "--data-dir", str(tmp_path / "data"), *listen)
    try:
        controller.start()
        own = ["--agent-id", "a1", "--state-dir", str(tmp_path / "state"), "--controller", controller.address]
        agent = process(tmp_path, "agent", "secgroups.agent", *own, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        try:
            agent.start()
            with grpc.insecure_channel(controller.address) as channel:
                guard_a_server(channel)
            yield controller, agent
        finally:
            agent.stop()
    finally:
        controller.stop()


def guard_a_server(channel: grpc.Channel) -> None:
    server = server_service_pb2.CreateServerRequest(project="p", id="s1", addresses=["10.0.0.1"], agent_id="a1")
    revision = ServerServiceStub(channel).CreateServer(server).revision
    request = ruleset_service_pb2.WaitForRevisionRequest(revision=revision)
    request.timeout.FromSeconds(20)
    assert RulesetServiceStub(channel).WaitForRevision(request).in_force
    with pytest.raises(grpc.RpcError):
        GroupServiceStub(channel).GetGroup(group_service_pb2.GetGroupRequest(project="p", id="none"))


def told(channel: grpc.Channel) -> agent_service_pb2.Report:
    """Return what the agent has reported to the controller."""
    return AgentServiceStub(channel).GetAgent(agent_service_pb2.GetAgentRequest(id="a1")).agent.report


def test_a_controller_shows_its_objects_agents_calls_and_delays(pair: tuple[Process, Process]) -> None:
    controller, _ = pair
    seen = scrape(controller)
    prefix = "secgroups_controller_"
    assert seen[f"{prefix}revision", ()] >= 1
    assert [seen[f"{prefix}objects", (kind,)] for kind in ("group", "rule", "server")] == [1, 3, 1]
    states = ("known", "connected", "lagging", "rejecting", "holding_back")
    assert [seen[f"{prefix}agents", (state,)] for state in states] == [1, 1, 0, 0, 0]
    assert (seen[f"{prefix}oldest_lag_seconds", ()], seen[f"{prefix}mutations_waiting", ()]) == (0, 0)
    assert seen[f"{prefix}commit_to_in_force_seconds_count", ()] == 1
    assert 0 < seen[f"{prefix}commit_to_in_force_seconds_sum", ()] < 20
    assert seen[f"{prefix}streams_total", ("SNAPSHOT",)] == 1
    assert seen[f"{prefix}stream_messages_total", ()] >= 3
    assert seen[f"{prefix}stream_message_bytes_total", ()] > 100
    assert seen[f"{prefix}rpcs_total", ("OK", "ServerService/CreateServer")] == 1
    assert seen[f"{prefix}rpcs_total", ("NOT_FOUND", "GroupService/GetGroup")] == 1
    assert seen[f"{prefix}unary_rpc_seconds_count", ()] == 3


def test_an_agent_shows_what_is_in_force_and_since_when(pair: tuple[Process, Process]) -> None:
    controller, agent = pair
    seen = scrape(agent)
    prefix = "secgroups_agent_"
    assert seen[f"{prefix}applied_revision", ()] == scrape(controller)["secgroups_controller_revision", ()]
    names = ("connected", "from_cache", "held_back", "rejected_objects", "servers", "flows")
    assert [seen[f"{prefix}{name}", ()] for name in names] == [1, 0, 0, 0, 1, 0]
    assert 0 <= seen[f"{prefix}staleness_seconds", ()] < 20
    assert seen[f"{prefix}commit_to_in_force_seconds_count", ()] == 1
    assert seen[f"{prefix}apply_seconds_count", ()] == 1
    assert seen[f"{prefix}verdicts_total", ("NO_RULE",)] == 0
    assert seen[f"{prefix}cache_write_failures_total", ()] == 0
    with grpc.insecure_channel(controller.address) as channel:
        while not (report := told(channel)).HasField("commit_to_in_force"):
            time.sleep(0.02)
    assert (sum(report.commit_to_in_force.counts), report.commit_to_in_force.sum_micros > 0) == (1, True)
    controller.stop()
    while scrape(agent)[f"{prefix}connected", ()]:
        pass
    assert scrape(agent)[f"{prefix}servers", ()] == 1


def test_what_is_no_request_for_metrics_harms_nothing(pair: tuple[Process, Process]) -> None:
    controller, _ = pair
    host, _, port = metrics_address(controller).rpartition(":")
    for said in (b"nonsense\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", b"\x00" * 1000, b""):
        # It may be cut off before it has said all that.
        with socket.create_connection((host, int(port)), timeout=10) as connection, suppress(ConnectionError):
            connection.sendall(said)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/metrics", method="DELETE"), timeout=10)
    assert scrape(controller)["secgroups_controller_revision", ()] >= 1


def test_nothing_but_get_metrics_is_answered(pair: tuple[Process, Process]) -> None:
    for each in pair:
        for path, method, code in (
            ("/", "GET", 404),
            ("/metrics/x", "GET", 404),
            ("/metrics", "POST", 405),
            ("/metrics", "PUT", 405),
        ):
            request = urllib.request.Request(
                f"http://{metrics_address(each)}{path}", method=method, data=b"" if method != "GET" else None
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert (path, method, refused.value.code) == (path, method, code)
            refused.value.close()


def test_connections_that_say_nothing_are_bounded_and_left_after_a_while(pair: tuple[Process, Process]) -> None:
    for each in pair:
        assert each.popen is not None
        host, _, port = metrics_address(each).rpartition(":")
        idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
        try:
            # All but a few are closed at once, the others when their time is over; none gets an answer.
            assert all(connection.recv(1) == b"" for connection in idle)
            assert scrape(each)
        finally:
            for connection in idle:
                connection.close()
