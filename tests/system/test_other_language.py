"""DecideStream from another language: a Node program that knows nothing but the comments in the proto fills records by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running_system import STRANGER, System

from secgroups.v1.rule_service_pb2 import ListRulesRequest
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub

CLIENT = Path(__file__).with_name("decide_stream_client.js")
PROTOS = Path(__file__).parents[2] / "proto"
PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
TIMEOUT_S = 120
ALLOW, DENY = 1, 2
OPENED = 1

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="the other language is Node, and node or npm is not here"
)


@pytest.fixture(scope="module")
def node_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Node finds gRPC."""
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return str(folder / "node_modules")


def test_a_program_in_another_language_fills_records_and_reads_verdicts(system: Callable[..., System], node_path: str) -> None:
    running = system("h1")
    group_id = running.group("web")
    born_with = running.ask(RuleServiceStub, "ListRules", ListRulesRequest(project=running.project, group_id=group_id)).rules
    (egress_id,) = [each.id for each in born_with if each.spec.cidr == "0.0.0.0/0"]
    ssh_id = running.rule(group_id, 22)
    running.server("s1", "10.0.0.9", "h1", group_id)
    assert running.wait_in_force().in_force
    done = subprocess.run(
        ["node", str(CLIENT), str(PROTOS), running.stack.agents["h1"].address, f"{running.project}/s1", "10.0.0.9", STRANGER],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "NODE_PATH": node_path},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["handles"][0] != 0
    assert told["handles"][1] == 0
    # Action, reason, flags, row, rule.
    assert told["verdicts"] == [
        ["syn", ALLOW, 1, OPENED, 13, ssh_id],
        ["answer", ALLOW, 2, 0, 9, ssh_id],
        ["other port", DENY, 24, 0, 11, ""],
        ["forged source", DENY, 20, 0, 5, ""],
        ["error about the answer", ALLOW, 3, 0, 8, ssh_id],
        ["error without a quote", DENY, 18, 0, 3, ""],
        ["first fragment", ALLOW, 1, OPENED, 13, egress_id],
        ["later fragment", ALLOW, 1, 0, 7, egress_id],
        ["fragment of nothing", DENY, 22, 0, 7, ""],
        ["no direction", DENY, 18, 0, 3, ""],
        ["unknown server", DENY, 16, 0, 1, ""],
    ]
    assert told["refused"] == [3, "records: 65 bytes, not a multiple of 64"]
