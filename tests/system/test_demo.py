"""The demo as a newcomer runs it, and that it tells when something does not hold."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def demo(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "demo"), "--json"], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_all_its_checks_hold() -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is True
    assert len(report["checks"]) >= 24
    for check in report["checks"]:
        assert check["expected"] == check["got"], check
    assert report["delete_to_deny_ms"] > 0
    expected = {check["expected"] for check in report["checks"]}
    assert {"ALLOW NEW web-servers", "ALLOW NEW database", "ALLOW NEW ping", "DENY NO_RULE", "DENY REVOKED"} <= expected


def test_it_fails_where_a_step_fails() -> None:
    done = demo(SECGROUPS_CONTROLLER_RULES_PER_GROUP="3")
    assert done.returncode == 1
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is False
    assert report["delete_to_deny_ms"] is None
    (failed,) = [check for check in report["checks"] if check["expected"] != check["got"]]
    assert "the most allowed is 3" in failed["got"]
