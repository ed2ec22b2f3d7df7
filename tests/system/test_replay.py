"""``sgctl replay`` as a process of its own, against a controller that runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from secgroups.lab.stack import Stack, environment_of
from secgroups.v1 import types_pb2 as types
from secgroups.v1.group_service_pb2 import CreateGroupRequest
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2 import CreateRuleRequest, DeleteRuleRequest
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.server_service_pb2 import CreateServerRequest
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

CAPTURES = Path(__file__).resolve().parents[1] / "captures"
HTTP = str(CAPTURES / "http_tcp.pcap")

Sgctl = Callable[..., subprocess.CompletedProcess[str]]


def tcp(port: int, **remote: object) -> types.RuleSpec:
    return types.RuleSpec(
        direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_TCP, ports=types.PortRange(first=port), **remote
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), []) as running:
        yield running


@pytest.fixture(scope="module")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.controller.address) as made:
        yield made


@pytest.fixture(scope="module")
def http_rule(channel: grpc.Channel) -> types.Rule:
    """The rule of group ``web``, which all servers of project p have."""
    groups, rules, servers = GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel)
    web = groups.CreateGroup(CreateGroupRequest(project="p", name="web")).group
    rule = rules.CreateRule(CreateRuleRequest(project="p", group_id=web.id, rule=tcp(80, anywhere=types.Anywhere()))).rule
    for server_id, name, addresses in (
        ("i-1", "web-1", ["10.0.0.9", "2001:db8::9"]),
        ("i-2", "twin", ["10.0.0.10"]),
        ("i-3", "twin", ["10.0.0.11"]),
    ):
        servers.CreateServer(CreateServerRequest(project="p", id=server_id, name=name, addresses=addresses, group_ids=[web.id]))
    servers.CreateServer(CreateServerRequest(project="other", id="i-1", name="lone", addresses=["10.0.0.9"], group_ids=[]))
    return rule


@pytest.fixture
def sgctl(stack: Stack, http_rule: types.Rule) -> Sgctl:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "secgroups.cli", "replay", *arguments]
        return subprocess.run(command, env=environment_of(stack, "p"), capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("server", ["web-1", "i-1"])
def test_a_capture_is_judged_by_the_rules_of_now(sgctl: Sgctl, http_rule: types.Rule, server: str) -> None:
    done = sgctl(HTTP, "--server", server, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    page, knock = report["flows"]
    assert (page["action"], page["reason"], page["rule_id"], page["group"]) == ("ALLOW", "NEW", http_rule.id, "web")
    assert (page["ingress_denied"], page["egress_denied"]) == (0, 0)
    assert (knock["action"], knock["reason"], knock["local_port"]) == ("DENY", "NO_RULE", 22)
    assert report["totals"]["server"] == "p/i-1"


def test_another_project_has_its_own_rules_for_the_same_address(sgctl: Sgctl) -> None:
    done = sgctl(HTTP, "--server", "lone", "--project", "other", "-o", "json")
    assert {flow["action"] for flow in json.loads(done.stdout)["flows"]} == {"DENY"}


def test_a_remote_group_stands_for_the_addresses_of_its_members(sgctl: Sgctl, channel: grpc.Channel) -> None:
    groups = GroupServiceStub(channel)
    servers = ServerServiceStub(channel)
    lone = groups.CreateGroup(CreateGroupRequest(project="g", name="clients")).group
    ssh = groups.CreateGroup(CreateGroupRequest(project="g", name="ssh")).group
    RuleServiceStub(channel).CreateRule(CreateRuleRequest(project="g", group_id=ssh.id, rule=tcp(22, group_id=lone.id)))
    servers.CreateServer(CreateServerRequest(project="g", id="s", addresses=["10.0.0.9"], group_ids=[ssh.id]))

    def knock() -> tuple[str, str]:
        flows = json.loads(sgctl(HTTP, "--server", "s", "--project", "g", "-o", "json").stdout)["flows"]
        (found,) = (flow for flow in flows if flow["local_port"] == 22)
        return (found["reason"], found["group"])

    assert knock() == ("NO_RULE", "")
    servers.CreateServer(CreateServerRequest(project="g", id="c", addresses=["198.51.100.7"], group_ids=[lone.id]))
    assert knock() == ("NEW", "ssh")


def test_deleting_the_rule_flips_the_verdict(sgctl: Sgctl, channel: grpc.Channel) -> None:
    rules = RuleServiceStub(channel)
    group = GroupServiceStub(channel).CreateGroup(CreateGroupRequest(project="flip", name="web")).group
    rule = rules.CreateRule(CreateRuleRequest(project="flip", group_id=group.id, rule=tcp(80, cidr="198.51.100.0/24"))).rule
    request = CreateServerRequest(project="flip", id="s", addresses=["10.0.0.9"], group_ids=[group.id])
    ServerServiceStub(channel).CreateServer(request)
    before = sgctl(HTTP, "--server", "s", "--project", "flip", "--summary")
    rules.DeleteRule(DeleteRuleRequest(project="flip", id=rule.id))
    after = sgctl(HTTP, "--server", "s", "--project", "flip", "--summary")
    (allowed,) = (line for line in before.stdout.splitlines() if ":80 " in line)
    (denied,) = (line for line in after.stdout.splitlines() if ":80 " in line)
    assert allowed.endswith(" web")
    assert denied.split()[-3:] == ["DENY", "NO_RULE", "-"]


def test_csv_and_table_show_every_packet_once(sgctl: Sgctl) -> None:
    rows = list(csv.DictReader(io.StringIO(sgctl(HTTP, "--server", "i-1", "-o", "csv").stdout)))
    lines = sgctl(HTTP, "--server", "i-1").stdout.splitlines()
    assert [row["number"] for row in rows] == [line.split()[0] for line in lines[1 : lines.index("")]]
    assert {row["action"] for row in rows} == {"ALLOW", "DENY"}


def test_the_plain_twin_of_the_engine_prints_the_same(sgctl: Sgctl) -> None:
    whole = [sgctl(HTTP, "--server", "i-1", *engine) for engine in ([], ["--engine", "compiled"], ["--engine", "reference"])]
    assert [done.returncode for done in whole] == [0, 0, 0]
    assert len({done.stdout for done in whole}) == 1


def test_packets_of_others_are_judged_only_when_asked_for(sgctl: Sgctl) -> None:
    assert sgctl(HTTP, "--server", "i-2", "--summary").stdout.splitlines()[-1].startswith("frames: ")
    without = json.loads(sgctl(HTTP, "--server", "i-2", "-o", "json").stdout)
    everything = json.loads(sgctl(HTTP, "--server", "i-2", "-o", "json", "--all").stdout)
    assert without["packets"] == []
    assert without["totals"]["other"] == len(everything["packets"]) > 0
    assert {packet["reason"] for packet in everything["packets"]} == {"NOT_LOCAL"}


def test_a_damaged_file_is_judged_up_to_the_damage_with_a_warning(sgctl: Sgctl, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(Path(HTTP).read_bytes()[:-5])
    done = sgctl(str(cut), "--server", "i-1", "-o", "json")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the file ends in the middle of a packet at byte ")
    assert len(done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["totals"]["damage"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([__file__, "--server", "i-1"], f"error: {__file__}: neither a pcap nor a pcapng file"),
        (["/nowhere.pcap", "--server", "i-1"], "error: /nowhere.pcap: no such file or directory"),
        ([HTTP, "--server", "nobody"], "error: there is no server 'nobody' in project p"),
        ([HTTP, "--server", "web-1", "--project", "other"], "error: there is no server 'web-1' in project other"),
        ([HTTP, "--server", "twin"], "error: 2 servers are called 'twin'; name one by its id"),
        (
            [HTTP, "--server", "i-1", "--tcp-loose", "-1"],
            "error: Invalid value for '--tcp-loose': -1 is not in the range 0<=x<=86400.",
        ),
        ([HTTP, "--server", "i-1", "--engine", "warp"], "error: Invalid value for '--engine': 'warp' is not one of"),
        ([HTTP], "error: Missing option '--server'."),
    ],
)
def test_what_can_not_be_replayed_is_one_clear_line_and_exit_status_2(sgctl: Sgctl, arguments: list[str], message: str) -> None:
    done = sgctl(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert any(line.startswith(message) for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


def test_a_controller_that_is_away_is_one_clear_line_and_exit_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "secgroups.cli", "--controller", f"unix:{tmp_path}/none", "replay", HTTP, "--server", "i-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: controller unix:{tmp_path}/none can't be reached: ")
