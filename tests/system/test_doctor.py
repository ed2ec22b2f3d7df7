"""sgctl doctor finds what is hardly meant so, and nothing where all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secgroups.lab.stack import Stack, environment_of


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, ["here"], tls=True) as made:
        yield made


def sgctl(stack: Stack, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "secgroups.cli", *arguments]
    done = subprocess.run(command, env=environment_of(stack, "p"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


def found(stack: Stack, *flags: str) -> list[str]:
    told = json.loads(sgctl(stack, *flags, "doctor", "-o", "json", status=1))
    assert all(finding["advice"] for finding in told["findings"])
    return sorted(finding["what"] for finding in told["findings"])


def test_it_finds_what_is_wrong_and_then_nothing(stack: Stack, tmp_path: Path) -> None:
    sgctl(stack, "group", "create", "web")
    sgctl(stack, "group", "create", "clients")
    sgctl(stack, "rule", "add", "web", "--protocol", "tcp", "--port", "443", "--remote-group", "clients")
    sgctl(stack, "group", "create", "closed")
    sgctl(stack, "server", "create", "s1", "--address", "10.0.0.1", "--agent", "away", "--group", "web")
    sgctl(stack, "server", "create", "s2", "--address", "10.0.0.2", "--group", "closed")
    assert found(stack) == ["AGENT_AWAY", "GROUP_CLOSED", "REMOTE_EMPTY", "SERVER_UNGUARDED"]
    said = sgctl(stack, "doctor", status=1)
    assert "agent away is not connected" in said
    assert "group clients is named by rules as remote and has no members" in said
    assert "4 findings; looked at agents, servers, groups of project p" in said
    # Who is no admin is not told of agents.
    sgctl(stack, "token", "create", "v", "--role", "viewer", "--in-project", "p", "--out", str(tmp_path / "v.token"))
    assert found(stack, "--token-file", str(tmp_path / "v.token")) == ["GROUP_CLOSED", "REMOTE_EMPTY", "SERVER_UNGUARDED"]
    sgctl(stack, "server", "set", "s1", "--agent", "here", "--wait")
    sgctl(stack, "server", "set", "s2", "--agent", "here", "--wait")
    sgctl(stack, "attach", "s2", "clients")
    sgctl(stack, "rule", "add", "closed", "--preset", "ssh", "--remote-any")
    sgctl(stack, "rule", "add", "clients", "--preset", "ssh", "--remote-any")
    assert "0 findings" in sgctl(stack, "doctor")
