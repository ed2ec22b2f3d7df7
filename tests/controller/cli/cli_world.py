"""sgctl as tests call it: in this process for most, as a process of its own where signals and pipes matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 30.0


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


@dataclass(frozen=True)
class Sgctl:
    """``sgctl`` pointed at a controller, in the project of one test."""

    command: Callable[..., Done]
    controller: str
    project: str

    def __call__(self, *arguments: str, stdin: str = "") -> Done:
        """Run and return what came."""
        return self.command(*self.pointed(), *arguments, stdin=stdin)

    def pointed(self) -> list[str]:
        """Return the arguments that say where and in which project."""
        return ["--controller", self.controller, "-p", self.project]

    def do(self, *arguments: str, stdin: str = "") -> Done:
        """Run what must succeed."""
        done = self(*arguments, stdin=stdin)
        assert done.status == 0, (arguments, done)
        return done

    def fail(self, *arguments: str, stdin: str = "") -> str:
        """Run what must end with status 2, having printed nothing on stdout; return the error without its prefix."""
        done = self(*arguments, stdin=stdin)
        assert (done.status, done.out) == (2, ""), (arguments, done)
        assert "Traceback" not in done.err
        return done.err[done.err.index("error: ") + len("error: ") :].rstrip("\n")

    def revision(self) -> int:
        """Return the controller's revision as an attach that changes nothing tells it. Needs a server n1 in group default."""
        return int(self.do("attach", "n1", "default", "-o", "json").json["revision"])

    def names(self, kind: str) -> list[str]:
        """Return the names of the groups or the ids of the servers or rules, ascending."""
        return sorted(self.do(kind, "list", "-o", "name").lines)

    def rules(self, group: str) -> list[str]:
        """Return the rules of a group, ingress and egress, as words, ascending."""
        listed = self.do("rule", "list", group, "-o", "csv", "--columns", "direction,protocol,ports,remote").lines[1:]
        return sorted(line.replace(",", " ") for line in listed)

    def column(self, key: str, *arguments: str) -> list[str]:
        """Return one column of what a list prints."""
        return self.do(*arguments, "-o", "csv", "--columns", key).lines[1:]

    def start(self, *arguments: str, **pipes: Any) -> subprocess.Popen[str]:
        """Start it as a process of its own, with pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", "secgroups.cli", *self.pointed(), *arguments],
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes},
        )


def until(true: Callable[[], bool]) -> None:
    """Wait for a condition; AssertionError if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
