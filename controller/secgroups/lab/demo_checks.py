"""What a demo has shown: each check with what was expected and what came, and the command line as a user would type it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import click

from secgroups.lab.stack import StackError

COMMAND_TIMEOUT_S = 60


@dataclass
class Checks:
    """What was expected and what came."""

    quiet: bool
    rows: list[dict[str, str]] = field(default_factory=list)

    def check(self, name: str, expected: str, got: str) -> None:
        """Note one comparison and show it."""
        self.rows.append({"name": name, "expected": expected, "got": got})
        mark = "ok    " if expected == got else "FAILED"
        self.say(f"  {mark} {name:<58} {got}" + ("" if expected == got else f"   (expected {expected})"))

    def say(self, text: str) -> None:
        """Show progress: on stdout for people, on stderr beside JSON."""
        click.echo(text, err=self.quiet)

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row["expected"] == row["got"] for row in self.rows)


def run_sgctl(checks: Checks, environment: Mapping[str, str], *arguments: str) -> str:
    """Show and run ``sgctl ARGUMENTS``; return its output. StackError if it fails."""
    checks.say(f"  $ sgctl {' '.join(arguments)}")
    command = [sys.executable, "-m", "secgroups.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise StackError(f"sgctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
