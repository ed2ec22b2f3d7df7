"""sgctl doctor finds what is hardly meant so, and nothing where all is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import grpc
import pytest
import trustme
from running_system import TIMEOUT_S, frozen, wait_until

from secgroups.cli.client import Client
from secgroups.cli.diagnosis import agents as look_at_agents_module
from secgroups.cli.diagnosis.agents import look_at_agents
from secgroups.cli.diagnosis.controller import look_at_controller
from secgroups.lab.stack import Stack, environment_of
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub


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
    assert "4 findings; looked at controller, agents, servers, groups of project p" in said
    # Who is no admin is not told of agents.
    sgctl(stack, "token", "create", "v", "--role", "viewer", "--in-project", "p", "--out", str(tmp_path / "v.token"))
    assert found(stack, "--token-file", str(tmp_path / "v.token")) == ["GROUP_CLOSED", "REMOTE_EMPTY", "SERVER_UNGUARDED"]
    sgctl(stack, "server", "set", "s1", "--agent", "here", "--wait")
    sgctl(stack, "server", "set", "s2", "--agent", "here", "--wait")
    sgctl(stack, "attach", "s2", "clients")
    sgctl(stack, "rule", "add", "closed", "--preset", "ssh", "--remote-any")
    sgctl(stack, "rule", "add", "clients", "--preset", "ssh", "--remote-any")
    assert "0 findings" in sgctl(stack, "doctor")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A controller without agents."""
    with Stack(tmp_path_factory.mktemp("alone"), [], tls=True) as made:
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A controller without TLS and without agents."""
    with Stack(tmp_path_factory.mktemp("plain"), []) as made:
        yield made


def first_finding(stack: Stack, *flags: str) -> tuple[str, str, str]:
    (finding,) = json.loads(sgctl(stack, *flags, "doctor", "-o", "json", status=1))["findings"]
    return finding["what"], finding["text"], finding["advice"]


def test_a_controller_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    with Stack(tmp_path, [], tls=True) as stack:
        pass
    what, text, advice = first_finding(stack)
    assert what == "CONTROLLER_UNREACHABLE"
    assert text == f"{stack.controller.address} can't be connected to: Connection refused"
    assert "start the controller" in advice


def test_a_controller_that_hangs_is_a_finding(alone: Stack) -> None:
    with frozen(alone.controller):
        what, text, _ = first_finding(alone, "--timeout", "1")
    assert (what, text) == ("CONTROLLER_UNREACHABLE", f"nothing answers at {alone.controller.address} within 3 s")


def test_an_authority_that_is_another_controllers_is_a_finding(alone: Stack, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    what, text, advice = first_finding(alone, "--ca-file", str(tmp_path / "ca.pem"))
    assert what == "CONTROLLER_CERTIFICATE"
    assert "does not count" in text
    assert "ca.pem" in advice


def test_a_token_that_does_not_count_is_a_finding(alone: Stack, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sgt_nothing")
    what, _, advice = first_finding(alone, "--token-file", str(tmp_path / "token"))
    assert what == "TOKEN_REFUSED"
    assert "sgctl token create" in advice


def test_plain_text_where_tls_is_spoken_is_a_finding_and_the_other_way_round(alone: Stack, plain: Stack) -> None:
    what, text, _ = first_finding(alone, "--plaintext")
    assert (what, text) == ("CONTROLLER_UNREACHABLE", f"{alone.controller.address} speaks TLS")
    what, text, _ = first_finding(alone, "--controller", plain.controller.address)
    assert (what, text) == ("CONTROLLER_UNREACHABLE", f"{plain.controller.address} does not speak TLS")


def test_where_agents_subscribe_is_not_where_to_ask(alone: Stack) -> None:
    what, _, advice = first_finding(alone, "--controller", alone.controller.agent_address)
    assert what == "CONTROLLER_UNREACHABLE"
    assert "--agent-listen" in advice


def test_a_data_directory_is_looked_at_for_who_can_read_it_and_whose_it_is(alone: Stack) -> None:
    folder, secret = alone.trust_folder.parent, alone.trust_folder / "operator.token"
    folder.chmod(0o755)
    secret.chmod(0o640)
    told = json.loads(sgctl(alone, "doctor", "--data-dir", str(folder), "-o", "json", status=1))
    assert [(finding["what"], str(folder) in finding["text"]) for finding in told["findings"]] == [
        ("DATA_DIR_OPEN", True),
        ("SECRET_OPEN", True),
    ]
    assert told["findings"][1]["text"] == f"secret {secret} is readable by others than its owner"
    folder.chmod(0o700)
    secret.chmod(0o600)
    assert sgctl(alone, "doctor", "--data-dir", str(folder)).startswith("0 findings; looked at data directory, controller, ")
    if os.geteuid() == 0:
        os.chown(folder / "secgroups.db", 12_345, -1)
        (finding,) = json.loads(sgctl(alone, "doctor", "--data-dir", str(folder), "-o", "json", status=1))["findings"]
        os.chown(folder / "secgroups.db", 0, -1)
        assert (finding["what"], "secgroups.db is not of the directory's owner, uid 0" in finding["text"]) == (
            "OWNER_DIFFERS",
            True,
        )


def test_a_data_directory_that_is_none_is_a_finding(alone: Stack, tmp_path: Path) -> None:
    for folder, expected in ((tmp_path / "nowhere", "DATA_DIR_UNREADABLE"), (tmp_path, "DATA_DIR_EMPTY")):
        told = json.loads(sgctl(alone, "doctor", "--data-dir", str(folder), "-o", "json", status=1))
        assert [finding["what"] for finding in told["findings"]] == [expected]


def test_a_disk_with_little_room_is_found_from_outside_and_on_the_machine(small_disk: Path) -> None:
    small_disk.chmod(0o700)
    with Stack(small_disk, [], tls=True) as stack:
        what, text, advice = first_finding(stack)
        assert what == "DISK_LOW"
        assert "MiB free" in text
        assert "changes are refused" in advice
        data = stack.trust_folder.parent
        data.chmod(0o700)
        told = json.loads(sgctl(stack, "doctor", "--data-dir", str(data), "-o", "json", status=1))
        assert [finding["what"] for finding in told["findings"]] == ["DISK_LOW", "DISK_LOW"]


@pytest.mark.parametrize(("expected", "ahead_s"), [([], 0), (["CONTROLLER_CLOCK"], 3_600), (["CONTROLLER_CLOCK"], -3_600)])
def test_a_clock_that_is_not_the_controllers_is_found(plain: Stack, expected: list[str], ahead_s: int) -> None:
    with Client(plain.controller.address, "p", TIMEOUT_S) as client:
        found_there = list(look_at_controller(client, time.time() + ahead_s))
    assert [finding.what for finding in found_there] == expected
    assert all("3600 s" in finding.text and ("behind" in finding.text) == (ahead_s > 0) for finding in found_there)


def test_an_agent_that_is_late_rejects_holds_back_and_has_another_time_is_told_of(
    plain: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent made by hand does all of it: it takes a group and rejects it, and acknowledges nothing after that."""
    monkeypatch.setattr(look_at_agents_module, "LAG_MAX_S", 0.0)
    sgctl(plain, "group", "create", "web")
    sgctl(plain, "server", "create", "s1", "--address", "10.0.0.1", "--agent", "odd", "--group", "web")
    ending, rejected = Event(), Event()
    said = agents_pb.Hello(agent_id="odd", boot_id="b1")
    said.held_back.CopyFrom(agents_pb.HeldBack(revision=1, servers_removed=40, servers_held=50, max_removal=0.5))
    sync_points: list[agents_pb.SyncPoint] = []
    groups: list[agents_pb.GroupRules] = []

    def say() -> Iterator[agents_pb.SubscribeRequest]:
        yield agents_pb.SubscribeRequest(hello=said)
        report = agents_pb.Report(flows=1)
        report.time.FromNanoseconds(time.time_ns() + 3_600 * 10**9)
        yield agents_pb.SubscribeRequest(report=report)
        assert rejected.wait(TIMEOUT_S)
        ack = agents_pb.Ack(nonce=sync_points[0].nonce, applied_revision=sync_points[0].revision)
        kept = agents_pb.ObjectVersion(kind=agents_pb.OBJECT_KIND_GROUP, key=groups[0].group_id, version=groups[0].version)
        ack.rejected.add(object=kept, code=12, message="what is this")
        yield agents_pb.SubscribeRequest(ack=ack)
        ending.wait(TIMEOUT_S)

    with grpc.insecure_channel(plain.controller.address) as channel:
        stream = AgentServiceStub(channel).Subscribe(say(), timeout=TIMEOUT_S)
        for message in stream:
            groups += message.update.groups
            if message.HasField("sync_point"):
                sync_points.append(message.sync_point)
                break
        try:
            with Client(plain.controller.address, "p", TIMEOUT_S) as client:
                held_back = {finding.what: finding for finding in look_at_agents(client)}["AGENT_HOLDS_BACK"]
                rejected.set()
                # All is in force, but for what is rejected; the rule that comes then is not.
                sgctl(plain, "rule", "add", "web", "--preset", "ssh", "--remote-any")
                assert next(stream).HasField("update")
                expected = {"AGENT_REJECTS", "AGENT_LATE", "AGENT_CLOCK"}
                wait_until(lambda: {finding.what for finding in look_at_agents(client)} == expected, "its acknowledgement is there")
                found_there = {finding.what: finding for finding in look_at_agents(client)}
        finally:
            ending.set()
            stream.cancel()
    assert "would remove 40 servers" in held_back.text
    assert "what is this" in found_there["AGENT_REJECTS"].text
    assert found_there["AGENT_CLOCK"].text == "the clock of agent odd is 3600 s ahead of the controller's"
