"""Starting and ending: processes end when they are told to, say so, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, Timer

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from running_system import TIMEOUT_S, System, wait_until

from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import ruleset_service_pb2 as rulesets_pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def heeding_sigint() -> Iterator[None]:
    """SIGINT is ignored in what a shell has put into the background, and that would be inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(process: Process, number: int) -> int:
    """Send a signal and return the exit status."""
    assert process.popen is not None
    process.popen.send_signal(number)
    return process.popen.wait(TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_in_good_order(system: Callable[..., System], number: int) -> None:
    site = system("a1")
    site.server("w1", "10.0.0.9", "a1", site.group("web", 80))
    assert site.wait_in_force().in_force
    assert ended(site.stack.controller, number) == 0
    wait_until(lambda: bool(site.logged("a1", "controller_lost")), "the agent notices")
    assert site.logged("a1", "controller_lost")[0]["reason"] == "it said: the controller is stopping"
    assert site.logged("controller", "controller_stopped")
    assert ended(site.stack.agents["a1"], number) == 0
    assert site.logged("a1", "agent_stopped")
    for name in ("controller", "a1"):
        assert "Traceback" not in (site.folder / f"{name}.log").read_text()
    # Nothing but what is kept: no socket, no half-written file, no journal.
    assert {file.name for file in (site.folder / "controller").iterdir()} == {"secgroups.db", "secgroups.db.lock"}
    assert {file.name for file in (site.folder / "a1").iterdir()} == {"ruleset.cache", "lock"}
    left = {file.name for file in site.folder.iterdir()} - {"controller", "a1"}
    assert left == {"controller.log", "controller.ready", "a1.log", "a1.ready"}


def test_streams_and_waits_are_ended_with_a_reason_when_the_controller_stops(
    system: Callable[..., System], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECGROUPS_CONTROLLER_DRAIN_S", "600")
    site = system()
    site.server("w1", "10.0.0.9", "hand-made", site.group("web", 80))
    hello = agents_pb.SubscribeRequest(hello=agents_pb.Hello(agent_id="hand-made", boot_id="b1", version="0"))
    silent = Event()

    def say() -> Iterator[agents_pb.SubscribeRequest]:
        yield hello
        silent.wait(TIMEOUT_S)

    with grpc.insecure_channel(site.stack.controller.address) as channel:
        stream = AgentServiceStub(channel).Subscribe(say(), timeout=TIMEOUT_S)
        rulesets = RulesetServiceStub(channel)
        named = rulesets_pb.WatchEffectiveRulesetRequest(project=site.project, server_id="w1")
        watch = rulesets.WatchEffectiveRuleset(named, timeout=TIMEOUT_S)
        assert len(next(watch).ruleset.rules) == 3
        assert next(stream).HasField("welcome")
        request = rulesets_pb.WaitForRevisionRequest(revision=site.revision())
        request.timeout.FromSeconds(60)
        wait = rulesets.WaitForRevision.future(request, timeout=TIMEOUT_S)
        # Answered after the one before it has begun.
        rulesets.GetEffectiveRuleset(rulesets_pb.GetEffectiveRulesetRequest(project=site.project, server_id="w1"))
        try:
            assert ended(site.stack.controller, signal.SIGTERM) == 0
            *_, last = stream
            assert last.go_away.reason == "the controller is stopping"
            assert last.go_away.reconnect_after.ToMilliseconds() > 0
            assert stream.code() is grpc.StatusCode.OK
            for call, again in ((watch, "watch"), (wait, "wait")):
                assert call.code() is grpc.StatusCode.UNAVAILABLE
                assert call.details() == f"the controller is stopping; {again} again"
            # Nobody is asked to come back together with another.
            delays = [last.go_away.reconnect_after, retry_delay(watch), retry_delay(wait)]
            assert sorted(delay.ToMilliseconds() for delay in delays) == [1_000, 1_002, 1_004]
            assert "Traceback" not in (site.folder / "controller.log").read_text()
        finally:
            silent.set()


def retry_delay(call: grpc.Call) -> Duration:
    status = rpc_status.from_call(call)
    assert status is not None
    (packed,) = [detail for detail in status.details if detail.Is(RetryInfo.DESCRIPTOR)]
    info = RetryInfo()
    packed.Unpack(info)
    return info.retry_delay


def test_a_restart_keeps_everything(system: Callable[..., System]) -> None:
    site = system("a1")
    site.server("w1", "10.0.0.9", "a1", site.group("web", 80))
    revision = site.revision()
    site.stack.controller.stop()
    site.stack.controller.start()
    assert site.revision() == revision
    wait_until(lambda: site.agent("a1").connected, "the agent is back")
    assert site.decide("a1", "w1", "10.0.0.9", 80) == "NEW"


DEV = [sys.executable, "-u", "-m", "secgroups.cli", "dev", "--listen", "127.0.0.1:0"]
DEMO = [sys.executable, "-u", "-m", "secgroups.lab.demo"]


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command that starts others as a terminal would: in a process group of its own. Temporary files are in ``folder``."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True) as process:
        timer = Timer(TIMEOUT_S, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def told_until(dev: subprocess.Popen[str], beginning: str) -> list[str]:
    """Return what is printed up to the line that begins like this."""
    told: list[str] = []
    assert dev.stdout is not None
    for line in dev.stdout:
        told.append(line.rstrip())
        if line.startswith(beginning):
            return told
    raise AssertionError(f"{dev.args!r} ended after {told}")


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), f"{pids} are gone")


def test_dev_comes_up_its_lines_work_and_it_takes_all_with_it(tmp_path: Path) -> None:
    with running(DEV, tmp_path) as dev:
        ran = run_all([line.strip() for line in told_until(dev, "Ctrl-C") if line.startswith("  ")])
        children = children_of(dev.pid)
        # As Ctrl-C does: to all of the group.
        os.killpg(dev.pid, signal.SIGINT)
        _, told = dev.communicate(timeout=TIMEOUT_S)
    assert (dev.returncode, told) == (0, "stopping\n")
    assert len(ran) == 6
    assert ran["sgctl check"].startswith("ALLOW")
    assert json.loads(ran["grpcurl -plaintext"])["action"] == "ACTION_ALLOW"
    assert "sport=40000 dport=22" in ran["sgctl agent"]
    assert len(children) == 2
    wait_until_gone(children)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("children_count", [1, 2])
@pytest.mark.parametrize("command", [DEV, DEMO], ids=["dev", "demo"])
def test_what_was_started_goes_with_who_started_it_even_half_way(tmp_path: Path, command: list[str], children_count: int) -> None:
    with running(command, tmp_path) as starter:
        wait_until(lambda: len(children_of(starter.pid)) >= children_count, "controller and agents are being started")
        children = children_of(starter.pid)
        starter.terminate()
        _, told = starter.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in told
    assert starter.returncode == (0 if command is DEV else 128 + signal.SIGTERM)
    wait_until_gone(children)
    assert not list(tmp_path.iterdir())


def run_all(lines: list[str]) -> dict[str, str]:
    """Run the lines that were printed to be pasted; return what each printed, by its first two words."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    ran = {}
    for line in lines:
        if found := re.fullmatch(r"export (\w+)=(\S+)", line):
            environment[found[1]] = found[2]
            continue
        words = shlex.split(line)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, (line, done)
        ran[" ".join(words[:2])] = done.stdout
    return ran


def test_dev_says_which_of_its_processes_died(tmp_path: Path) -> None:
    with running(DEV, tmp_path) as dev:
        told_until(dev, "Ctrl-C")
        children = children_of(dev.pid)
        os.kill(children[0], signal.SIGKILL)
        _, told = dev.communicate(timeout=TIMEOUT_S)
    assert dev.returncode == 2
    assert "controller ended with -9" in told
    assert "Traceback" not in told
    wait_until_gone(children)


def test_a_busy_controller_ends_within_its_grace(system: Callable[..., System]) -> None:
    site = system()
    group_id = site.group("web")
    ending = Event()

    def write() -> None:
        port = 1
        while not ending.is_set() and port < 100:
            try:
                site.rule(group_id, port)
            except grpc.RpcError:
                return
            port += 1

    writer = Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: site.revision() > 5, "the writer is at work")
        began = time.monotonic()
        assert ended(site.stack.controller, signal.SIGTERM) == 0
        assert time.monotonic() - began < TIMEOUT_S
    finally:
        ending.set()
        writer.join(TIMEOUT_S)
