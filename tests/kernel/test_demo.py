"""The demo with real packets as a newcomer runs it: it holds, it leaves nothing behind, and it says what it lacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import run

from secgroups.lab import namespaces

DEMO = [sys.executable, "-u", "-m", "secgroups.lab.demo", "--kernel"]
TIMEOUT_S = 300
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def able(request: pytest.FixtureRequest) -> None:
    if "lacks" not in request.node.name and (lacks := namespaces.lacking()):
        pytest.skip("; ".join(lacks))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files that PostgreSQL's user may enter: pytest closes its own to all others."""
    with tempfile.TemporaryDirectory(prefix="secgroups-test-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


def left_behind(folder: Path, pid: int) -> list[str]:
    return [name for name in run("ip", "netns", "list").split() if f"-{pid}-" in name] + [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("closed", [False, True], ids=["postgresql", "without postgresql"])
def test_all_its_checks_hold_and_nothing_is_left(folder: Path, closed: bool) -> None:
    environment = {**os.environ, "TMPDIR": str(folder)}
    if closed:
        folder.chmod(0o700)
    with subprocess.Popen([*DEMO, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as demo:
        output, told = demo.communicate(timeout=TIMEOUT_S)
    report = json.loads(output.splitlines()[-1])
    assert [check for check in report["checks"] if check["expected"] != check["got"]] == [], told
    assert (demo.returncode, report["ok"]) == (0, True), told
    assert {check["got"] for check in report["checks"]} >= {"in force", "no answer", "answered", "stops", "goes on"}
    assert len(report["delete_to_last_packet_ms_all"]) == 3
    assert left_behind(folder, demo.pid) == []
    if closed:
        assert "and a plain TCP server, since PostgreSQL" in told


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "A controller on"),
        (signal.SIGINT, "Real connections"),
        (signal.SIGINT, "The HTTP rule deleted"),
        (signal.SIGTERM, "The HTTP rule deleted"),
    ],
)
def test_it_takes_all_with_it_when_it_is_ended(folder: Path, number: signal.Signals, line: str) -> None:
    environment = {**os.environ, "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(DEMO, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True) as demo:
        assert demo.stdout is not None
        shown = []
        for told in demo.stdout:
            shown.append(told)
            if told.startswith(line):
                break
        else:
            pytest.fail(f"it ended before: {''.join(shown)}{demo.communicate(timeout=TIMEOUT_S)[1]}")
        if number is signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        _, told = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 128 + number
    assert "Traceback" not in told
    assert left_behind(folder, demo.pid) == []
    # Of the session that it began nobody is left.
    deadline = time.monotonic() + WAIT_S
    while sessions_of(demo.pid):
        assert time.monotonic() < deadline, sessions_of(demo.pid)


def sessions_of(session: int) -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_it_says_what_it_lacks(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "the demo with real packets lacks ip: it is not installed (Debian: apt-get install iproute2)" in done.stderr
    assert "the demo with real packets lacks curl: it is not installed (Debian: apt-get install curl)" in done.stderr
    assert "Traceback" not in done.stderr
