"""Starting and ending: processes end when they are told to, say so, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from running_system import TIMEOUT_S, System, wait_until

from secgroups.lab.stack import Process

BIN = Path(sys.executable).parent


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


def test_a_restart_keeps_everything(system: Callable[..., System]) -> None:
    site = system("a1")
    site.server("w1", "10.0.0.9", "a1", site.group("web", 80))
    revision = site.revision()
    site.stack.controller.stop()
    site.stack.controller.start()
    assert site.revision() == revision
    wait_until(lambda: site.agent("a1").connected, "the agent is back")
    assert site.decide("a1", "w1", "10.0.0.9", 80) == "NEW"


def test_dev_comes_up_its_lines_work_and_it_takes_all_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "secgroups.cli", "dev", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "dev")]
    # SIGINT is ignored in what a shell has put into the background, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dev:
        timer = threading.Timer(TIMEOUT_S, dev.kill)
        timer.start()
        try:
            assert dev.stdout is not None
            told = []
            for line in dev.stdout:
                told.append(line.rstrip())
                if line.startswith("Ctrl-C"):
                    break
            ran = run_all([line.strip() for line in told if line.startswith("  ")])
            children = children_of(dev.pid)
            dev.send_signal(signal.SIGINT)
            assert dev.wait(TIMEOUT_S) == 0
        finally:
            timer.cancel()
            dev.kill()
    assert len(ran) == 5
    assert ran["sgctl check"].startswith("ALLOW")
    assert json.loads(ran["grpcurl -plaintext"])["action"] == "ACTION_ALLOW"
    assert len(children) == 2
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "controller and agent are gone")


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


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_dev_says_which_of_its_processes_died(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "secgroups.cli", "dev", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "dev")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dev:
        timer = threading.Timer(TIMEOUT_S, dev.kill)
        timer.start()
        try:
            assert dev.stdout is not None
            for line in dev.stdout:
                if line.startswith("Ctrl-C"):
                    break
            controller = children_of(dev.pid)[0]
            os.kill(controller, signal.SIGKILL)
            _, told = dev.communicate(timeout=TIMEOUT_S)
        finally:
            timer.cancel()
            dev.kill()
    assert dev.returncode != 0
    assert "controller ended with -9" in told
    assert "Traceback" not in told


def test_a_busy_controller_ends_within_its_grace(system: Callable[..., System]) -> None:
    site = system()
    group_id = site.group("web")
    ending = threading.Event()

    def write() -> None:
        port = 1
        while not ending.is_set() and port < 100:
            try:
                site.rule(group_id, port)
            except grpc.RpcError:
                return
            port += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: site.revision() > 5, "the writer is at work")
        began = time.monotonic()
        assert ended(site.stack.controller, signal.SIGTERM) == 0
        assert time.monotonic() - began < TIMEOUT_S
    finally:
        ending.set()
        writer.join(TIMEOUT_S)
