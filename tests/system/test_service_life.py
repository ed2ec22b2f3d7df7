"""Both programs as services: what the service manager is told, what health says meanwhile, and what SIGHUP changes."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_system import TIMEOUT_S, wait_until

from secgroups.controller.config import ControllerConfig
from secgroups.controller.core import Core
from secgroups.controller.server import ControllerServer
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.lab.stack import Process
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
WATCHED = "secgroups.v1.AgentService"

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program by its name, with settings in a file and variables of its own; it is stopped with the test."""
    started: list[Process] = []

    def start_one(name: str, settings: str = "", **environment: str) -> Process:
        (tmp_path / name).mkdir()
        file = tmp_path / f"{name}.toml"
        file.write_text(settings)
        flags = {
            "controller": ["--data-dir", str(tmp_path / name), "--admin-listen", "127.0.0.1:0"],
            "agent": ["--state-dir", str(tmp_path / name), "--agent-id", "a1", "--controller", "127.0.0.1:1"],
        }
        made = Process(
            name=name,
            arguments=[f"secgroups.{name}", "--plaintext", "--listen", "127.0.0.1:0", "--config", str(file), *flags[name]],
            ready_file=tmp_path / f"{name}.ready",
            log_file=tmp_path / f"{name}.log",
            environment={**os.environ, **environment},
        )
        started.append(made)
        made.start()
        return made

    yield start_one
    for each in started:
        each.stop()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(TIMEOUT_S)
        yield manager


def events(process: Process, name: str) -> list[dict[str, Any]]:
    lines = process.log_file.read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def send(process: Process, number: int) -> None:
    assert process.popen is not None
    process.popen.send_signal(number)


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_the_service_manager_is_told_of_the_start_and_of_the_end(
    start: Start, told: socket.socket, tmp_path: Path, name: str
) -> None:
    process = start(name, NOTIFY_SOCKET=str(tmp_path / "notify"))
    assert told.recv(100) == b"READY=1"
    with grpc.insecure_channel(process.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == SERVING
    send(process, signal.SIGTERM)
    assert told.recv(100) == b"STOPPING=1"
    assert process.popen is not None
    assert process.popen.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_without_anybody_at_its_socket_it_starts_all_the_same_and_says_so(start: Start, tmp_path: Path, name: str) -> None:
    process = start(name, NOTIFY_SOCKET=str(tmp_path / "nobody"))
    wait_until(lambda: bool(events(process, f"{name}_started")), "it has started")
    (warning,) = events(process, "service_manager_not_told")
    assert (warning["state"], warning["reason"]) == ("READY=1", "No such file or directory")


async def test_health_is_not_serving_until_the_controller_is_ready(tmp_path: Path) -> None:
    config = ControllerConfig(data_dir=str(tmp_path), plaintext=True, listen="127.0.0.1:0", admin_listen="127.0.0.1:0")
    core = Core(SqliteStore(tmp_path / "secgroups.db", durable=False))
    server = ControllerServer(core, config)
    await server.start()
    try:
        for address in (server.address, server.admin_address):
            async with grpc.aio.insecure_channel(address) as channel:
                statuses = health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(service=WATCHED), timeout=TIMEOUT_S
                )
                assert (await statuses.read()).status == NOT_SERVING
                await server.be_ready()
                assert (await statuses.read()).status == SERVING
                statuses.cancel()
            # As it was, for the next address.
            await server._set_health(NOT_SERVING)
    finally:
        await server.stop(0)
        await core.close()


def test_while_calls_are_let_end_health_is_not_serving_and_new_calls_are_refused(start: Start) -> None:
    controller = start("controller", "drain_s = 600.0")
    with grpc.insecure_channel(controller.address) as channel:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=WATCHED), timeout=TIMEOUT_S)
        assert next(statuses).status == SERVING
        send(controller, signal.SIGTERM)
        # The watch is a call that goes on: it is what the stop waits for.
        assert next(statuses).status == NOT_SERVING
        wait_until(lambda: refuses(controller.address), "new calls are refused")
        assert controller.popen is not None
        assert controller.popen.poll() is None
        statuses.cancel()
        assert controller.popen.wait(TIMEOUT_S) == 0


def refuses(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            GroupServiceStub(channel).ListGroups(groups_pb.ListGroupsRequest(project="p"), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    return False


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_sighup_takes_over_the_log_level_and_names_what_needs_a_restart(start: Start, tmp_path: Path, name: str) -> None:
    process = start(name, 'log_level = "error"')
    (tmp_path / f"{name}.toml").write_text('log_level = "debug"\nmetrics_listen = "127.0.0.1:0"\n')
    send(process, signal.SIGHUP)
    wait_until(lambda: bool(events(process, "settings_reloaded")), "it has reloaded")
    (reloaded,) = events(process, "settings_reloaded")
    assert (reloaded["log_level"], reloaded["restart_needed_for"]) == ("debug", ["metrics_listen"])
    assert not events(process, f"{name}_started"), "it started when only errors were logged"
    send(process, signal.SIGTERM)
    assert process.popen is not None
    assert process.popen.wait(TIMEOUT_S) == 0
    assert events(process, f"{name}_stopped")


def test_reads_are_logged_from_the_moment_at_which_debug_is_asked_for(start: Start, tmp_path: Path) -> None:
    controller = start("controller")

    def reads() -> list[dict[str, Any]]:
        with grpc.insecure_channel(controller.address) as channel:
            GroupServiceStub(channel).ListGroups(groups_pb.ListGroupsRequest(project="p"), timeout=TIMEOUT_S)
        return events(controller, "rpc_answered")

    assert reads() == []
    (tmp_path / "controller.toml").write_text('log_level = "debug"')
    send(controller, signal.SIGHUP)
    wait_until(lambda: bool(events(controller, "settings_reloaded")), "it has reloaded")
    assert [(event["method"], event["level"]) for event in reads()] == [("GroupService/ListGroups", "debug")]


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_sighup_with_settings_that_cannot_work_changes_nothing(start: Start, tmp_path: Path, name: str) -> None:
    process = start(name)
    (tmp_path / f"{name}.toml").write_text('log_level = "loud"')
    send(process, signal.SIGHUP)
    wait_until(lambda: bool(events(process, "settings_not_reloaded")), "it has said so")
    (refused,) = events(process, "settings_not_reloaded")
    assert refused["reason"] == "log_level is 'loud', must be one of debug, info, warning, error"
    with grpc.insecure_channel(process.address) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status == SERVING
