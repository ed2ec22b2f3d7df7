"""sgctl against a controller and two agents that run as processes of their own; each test has a project to itself."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secgroups.cli.main import run
from secgroups.lab.stack import Stack


@dataclass(frozen=True)
class Done:
    """What a command printed and its exit status."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A controller with agents a1 and a2."""
    with Stack(tmp_path_factory.mktemp("stack"), ["a1", "a2"]) as running:
        yield running


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run sgctl in this process; the environment names no controller and no project."""
    for name in ("SECGROUPS_CONTROLLER", "SECGROUPS_PROJECT", "SECGROUPS_TIMEOUT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, stdin: str = "") -> Done:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(list(arguments))
        return Done(status, out.getvalue(), err.getvalue())

    return command


@dataclass(frozen=True)
class Sgctl:
    """``sgctl`` pointed at the stack, in the project of one test."""

    command: Callable[..., Done]
    controller: str
    project: str

    def __call__(self, *arguments: str, stdin: str = "", project: str | None = None) -> Done:
        """Run and return what came."""
        return self.command("--controller", self.controller, "-p", project or self.project, *arguments, stdin=stdin)

    def do(self, *arguments: str, stdin: str = "") -> Done:
        """Run what must succeed."""
        done = self(*arguments, stdin=stdin)
        assert done.status == 0, (arguments, done)
        return done

    def fail(self, *arguments: str, stdin: str = "") -> str:
        """Run what must end with status 2, and return the message."""
        done = self(*arguments, stdin=stdin)
        assert done.status == 2, (arguments, done)
        assert "Traceback" not in done.err
        return done.err[done.err.index("error: ") :]


@pytest.fixture
def sgctl(stack: Stack, run_here: Callable[..., Done], request: pytest.FixtureRequest) -> Sgctl:
    """The command line in a project of its own."""
    project = request.node.name.replace("/", ".")[-128:].strip()
    return Sgctl(run_here, stack.controller.address, project)


@pytest.fixture
def fleet(sgctl: Sgctl) -> Sgctl:
    """Web servers w1, w2, database d1 (name db), and n1 in the default group; w1 and d1 have agents."""
    sgctl.do("group", "create", "web")
    sgctl.do("group", "create", "db")
    sgctl.do("rule", "add", "web", "--protocol", "tcp", "--port", "22", "--remote-ip", "203.0.113.0/24")
    sgctl.do("rule", "add", "db", "--protocol", "tcp", "--port", "3306", "--remote-group", "web")
    sgctl.do("server", "create", "w1", "--address", "10.0.0.1", "--agent", "a1", "--group", "web")
    sgctl.do("server", "create", "w2", "--address", "10.0.0.2", "--name", "twin", "--group", "web")
    sgctl.do(
        "server",
        "create",
        "d1",
        "--address",
        "10.0.0.9",
        "--address",
        "2001:db8::9",
        "--name",
        "db",
        "--agent",
        "a2",
        "--group",
        "db",
    )
    sgctl.do("server", "create", "n1", "--address", "10.0.0.5", "--name", "twin")
    return sgctl


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write a file and return its path."""

    def file(text: str, name: str = "policy.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return file
