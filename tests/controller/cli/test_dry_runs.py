"""A dry run of a removal says how many live flows it would cut, in words and as data."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cli_world import Sgctl

from secgroups.cli.changing import preview_lines
from secgroups.cli.commands.manifest import _union
from secgroups.lab.stack import Stack
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as verdicts
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

ADMIN, WEB, DB = "203.0.113.7", "10.0.0.1", "10.0.0.9"
LOGIN_ONLY = """\
- {direction: ingress, protocol: tcp, ports: 23, remote: 203.0.113.0/24}
"""


def open_flow(stack: Stack, agent_id: str, server: str, source: str, destination: str, port: int) -> None:
    """Let an agent see the packet that opens a connection to its server."""
    packet = verdicts.Packet(
        server=server,
        direction=types.DIRECTION_INGRESS,
        source=source,
        destination=destination,
        protocol=types.PROTOCOL_TCP,
        source_port=40_000,
        destination_port=port,
        tcp_flags=[verdicts.TCP_FLAG_SYN],
    )
    with grpc.insecure_channel(stack.agents[agent_id].address) as channel:
        answer = VerdictServiceStub(channel).Decide(verdicts.DecideRequest(packet=packet), timeout=30)
    assert types.Reason.Name(answer.reason) == "REASON_NEW"


@pytest.fixture
def busy(fleet: Sgctl, stack: Stack) -> Sgctl:
    """An admin is logged in on w1, which has a connection to the database d1."""
    open_flow(stack, "a1", f"{fleet.project}/w1", ADMIN, WEB, 22)
    open_flow(stack, "a2", f"{fleet.project}/d1", WEB, DB, 3306)
    return fleet


def rule_id(sgctl: Sgctl, group: str, port: str) -> str:
    listed = sgctl.do("rule", "list", group, "-o", "csv", "--columns", "id,ports").lines[1:]
    (found,) = [line.partition(",")[0] for line in listed if line.endswith(f",{port}")]
    return found


def test_every_removal_says_how_many_live_flows_it_would_cut(busy: Sgctl) -> None:
    login = rule_id(busy, "web", "22")
    for expected, arguments in (
        ("would cut 1 live flow on 1 agent", ("rule", "delete", login)),
        ("would cut 1 live flow on 1 agent", ("rule", "replace", "web", "-f", "-")),
        ("would cut 1 live flow on 1 agent", ("server", "delete", "d1")),
        ("would cut 2 live flows on 2 agents", ("server", "delete", "w1")),
        ("would cut 2 live flows on 2 agents", ("server", "set", "w1", "--address", "10.0.0.77")),
        ("would cut 1 live flow on 1 agent", ("server", "set", "d1", "--agent", "a1")),
        ("would cut no live flow on 1 agent", ("rule", "replace", "db", "-f", "-")),
    ):
        kept = LOGIN_ONLY if "web" in arguments else "- {direction: ingress, protocol: tcp, ports: 3306, remote: any}\n"
        done = busy.do(*arguments, "--dry-run", stdin=kept)
        assert done.lines[0] == "dry run, nothing was changed"
        assert expected in done.lines, (arguments, done.out)
    assert rule_id(busy, "web", "22") == login


def test_detaching_and_setting_groups_says_it_too(busy: Sgctl) -> None:
    busy.do("attach", "w1", "default", "--wait")
    assert "would cut 2 live flows on 2 agents" in busy.do("detach", "w1", "web", "--dry-run").lines
    busy.do("group", "create", "idle")
    assert "would cut no live flow" in busy.do("group", "delete", "idle", "--dry-run").lines


def test_it_is_in_the_data_too(busy: Sgctl) -> None:
    cut = busy.do("rule", "delete", rule_id(busy, "web", "22"), "--dry-run", "-o", "json").json["preview"]["flows_cut"]
    assert cut == {"flows": "1", "agents_counted": 1, "uncounted": [], "uncounted_count": 0}


def test_agents_that_did_not_count_are_named(busy: Sgctl) -> None:
    busy.do("server", "create", "w9", "--address", "10.0.0.99", "--agent", "a-nobody", "--group", "web")
    told = busy.do("rule", "delete", rule_id(busy, "web", "22"), "--dry-run").lines
    assert told[-2:] == ["would cut 1 live flow on 1 agent", "  not counted on a-nobody: not connected"]
    told = busy.do("server", "delete", "w9", "--dry-run").lines
    assert "  not counted on a-nobody: not connected" in told


def test_what_takes_nothing_away_says_nothing_of_flows(busy: Sgctl) -> None:
    done = busy.do("rule", "add", "web", "--protocol", "tcp", "--port", "8080", "--remote-ip", "10.0.0.0/8", "--dry-run")
    assert "live flow" not in done.out


def test_apply_adds_up_what_its_changes_would_cut(busy: Sgctl) -> None:
    file = "groups:\n  web: {rules: []}\n  db: {rules: []}\n"
    assert "would cut 2 live flows on 1 agent" in busy.do("apply", "-f", "-", "--dry-run", stdin=file).lines


def cut(flows: int, counted: int, uncounted: dict[str, str] | None = None, more: int = 0) -> types.Preview:
    listed = [types.UncountedAgent(agent_id=agent_id, reason=reason) for agent_id, reason in (uncounted or {}).items()]
    told: dict[str, Any] = {"uncounted": listed, "uncounted_count": len(listed) + more}
    return types.Preview(flows_cut=types.FlowsCut(flows=flows, agents_counted=counted, **told))


AWAY = "  not counted on a1: not connected"
CROWD = {f"a{number:02}": "not connected" for number in range(12)}


@pytest.mark.parametrize(
    ("expected", "preview"),
    [
        ([], types.Preview()),
        (["would cut no live flow"], cut(0, 0)),
        (["would cut no live flow on 3 agents"], cut(0, 3)),
        (["would cut 1 live flow on 1 agent"], cut(1, 1)),
        (["would cut 3 live flows on 2 agents", AWAY], cut(3, 2, {"a1": "not connected"})),
        (["would cut an unknown number of live flows", AWAY], cut(0, 0, {"a1": "not connected"})),
    ],
)
def test_the_words(expected: list[str], preview: types.Preview) -> None:
    assert list(preview_lines(preview, {}))[1:] == expected


def test_many_agents_are_not_all_named() -> None:
    *named, last = list(preview_lines(cut(1, 1, CROWD, more=90), {}))[2:]
    assert (len(named), last) == (10, "  not counted on 92 more agents")


def test_the_sum_of_several_changes_names_each_agent_once() -> None:
    total = _union([cut(1, 2, {"a1": "x"}), types.Preview(), cut(4, 1, {"a1": "x", "a0": "y"}, more=3)]).flows_cut
    assert (total.flows, total.agents_counted, total.uncounted_count) == (5, 2, 5)
    assert [agent.agent_id for agent in total.uncounted] == ["a0", "a1"]
    assert not _union([types.Preview()]).HasField("flows_cut")
