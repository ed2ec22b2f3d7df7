"""sgctl against a controller and two agents that run as processes of their own; each test has a project to itself."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_world import Done, Sgctl

from secgroups.cli.main import run
from secgroups.lab.stack import Stack

_PROJECTS = itertools.count(1)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A controller with agents a1 and a2."""
    with Stack(tmp_path_factory.mktemp("stack"), ["a1", "a2"]) as running:
        yield running


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run sgctl in this process; the environment names no controller and no project."""
    for name in ("SECGROUPS_CONTROLLER", "SECGROUPS_PROJECT", "SECGROUPS_TIMEOUT", "SECGROUPS_AGENT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, stdin: str = "") -> Done:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(list(arguments))
        return Done(status, out.getvalue(), err.getvalue())

    return command


@pytest.fixture
def sgctl(stack: Stack, run_here: Callable[..., Done]) -> Sgctl:
    """The command line in a project that nobody has used."""
    return Sgctl(run_here, stack.controller.address, f"project-{next(_PROJECTS)}")


@pytest.fixture
def other(stack: Stack, run_here: Callable[..., Done]) -> Sgctl:
    """The command line in another such project."""
    return Sgctl(run_here, stack.controller.address, f"other-{next(_PROJECTS)}")


FLEET = """\
groups:
  web:
    rules:
      - {direction: egress, protocol: any, remote: any}
      - {direction: ingress, protocol: tcp, ports: 22, remote: 203.0.113.0/24}
  db:
    rules:
      - {direction: egress, protocol: any, remote: any}
      - {direction: ingress, protocol: tcp, ports: 3306, remote: {group: web}}
servers:
  w1: {addresses: [10.0.0.1], agent: a1, groups: [web]}
  w2: {addresses: [10.0.0.2], name: twin, groups: [web]}
  d1: {addresses: [10.0.0.9, "2001:db8::9"], name: database, agent: a2, groups: [db]}
  n1: {addresses: [10.0.0.5], name: twin}
"""


@pytest.fixture
def fleet(sgctl: Sgctl) -> Sgctl:
    """Web servers w1, w2, database d1, and n1 in the default group; w1 and d1 have agents; w2 and n1 the same name."""
    sgctl.do("apply", "-f", "-", "--wait", stdin=FLEET)
    return sgctl


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write a file and return its path."""

    def file(text: str, name: str = "policy.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return file
