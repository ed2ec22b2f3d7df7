"""How many live flows a change would cut, asked of real agents: some have flows, one is stopped, one is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from running_system import System, wait_until

from secgroups.v1 import attachment_service_pb2 as attachments
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import types_pb2 as types
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

W1, W2 = "10.0.0.9", "10.0.0.10"
PORTS = (22, 80)


class Site:
    """w1 on a1 and w2 on a2, both in the group web (TCP 22 and 80) and in one that allows nothing more."""

    def __init__(self, system: System) -> None:
        system.renew_project()
        self.system = system
        self.spare = system.group("spare")
        self.web = system.group("web")
        self.rules = {port: system.rule(self.web, port) for port in PORTS}
        system.server("w1", W1, "a1", self.web, self.spare)
        system.server("w2", W2, "a2", self.web, self.spare)
        assert system.wait_in_force().in_force
        self._source_ports = count(50_000)

    def connect(self, server_id: str, port: int) -> int:
        """Establish a connection; return its source port."""
        agent_id, address = ("a1", W1) if server_id == "w1" else ("a2", W2)
        source_port = next(self._source_ports)
        for expected, flags in (("NEW", "SYN"), ("ESTABLISHED", "SYN,ACK"), ("ESTABLISHED", "ACK")):
            assert self.system.decide(agent_id, server_id, address, port, source_port, flags) == expected
        return source_port

    def would(self, stub: Any, method: str, request: Any) -> types.FlowsCut:
        """Try a change; nothing must come of it."""
        request.project, request.validate_only = self.system.project, True
        revision = self.system.revision()
        answer = self.system.ask(stub, method, request)
        assert self.system.revision() == revision
        cut = answer.preview.flows_cut
        assert isinstance(cut, types.FlowsCut)
        return cut

    def would_delete_rule(self, port: int) -> types.FlowsCut:
        return self.would(RuleServiceStub, "DeleteRule", rules.DeleteRuleRequest(id=self.rules[port]))


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system("a1", "a2")


@pytest.fixture
def site(shared: System) -> Site:
    return Site(shared)


def outcome(cut: types.FlowsCut) -> tuple[int, int, dict[str, str]]:
    assert len(cut.uncounted) == cut.uncounted_count
    return cut.flows, cut.agents_counted, {agent.agent_id: agent.reason for agent in cut.uncounted}


def test_a_dry_run_says_one_changes_nothing_and_the_deletion_then_cuts_that_one(site: Site) -> None:
    mine, other = site.connect("w1", 22), site.connect("w1", 80)
    assert outcome(site.would_delete_rule(22)) == (1, 2, {})
    site.connect("w2", 22)
    assert outcome(site.would_delete_rule(22)) == (2, 2, {})
    assert site.system.decide("a1", "w1", W1, 22, mine, "ACK") == "ESTABLISHED"
    assert site.system.wait_in_force(site.system.delete_rule(site.rules[22])).in_force
    assert site.system.decide("a1", "w1", W1, 22, mine, "ACK") == "REVOKED"
    assert site.system.decide("a1", "w1", W1, 80, other, "ACK") == "ESTABLISHED"
    assert outcome(site.would(ServerServiceStub, "DeleteServer", servers.DeleteServerRequest(id="w1"))) == (1, 1, {})


def test_every_change_that_takes_something_away_tells(site: Site) -> None:
    for server_id, port in (("w1", 22), ("w1", 80), ("w2", 22)):
        site.connect(server_id, port)
    only_80 = types.RuleSpec(
        direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_TCP, ports=types.PortRange(first=80), anywhere=types.Anywhere()
    )

    def update(mask: str, **values: Any) -> servers.UpdateServerRequest:
        request = servers.UpdateServerRequest(id="w1", **values)
        request.update_mask.paths.append(mask)
        return request

    told = {
        "ReplaceRules": site.would(RuleServiceStub, "ReplaceRules", rules.ReplaceRulesRequest(group_id=site.web, rules=[only_80])),
        "DetachGroup": site.would(
            AttachmentServiceStub, "DetachGroup", attachments.DetachGroupRequest(server_id="w1", group_id=site.web)
        ),
        "SetServerGroups": site.would(
            AttachmentServiceStub, "SetServerGroups", attachments.SetServerGroupsRequest(server_id="w1", group_ids=[site.spare])
        ),
        "DeleteServer": site.would(ServerServiceStub, "DeleteServer", servers.DeleteServerRequest(id="w2")),
        "addresses": site.would(ServerServiceStub, "UpdateServer", update("addresses", addresses=["10.0.0.77"])),
        "agent_id": site.would(ServerServiceStub, "UpdateServer", update("agent_id", agent_id="a2")),
        "group_ids": site.would(ServerServiceStub, "UpdateServer", update("group_ids", group_ids=[site.spare])),
    }
    assert {name: outcome(cut) for name, cut in told.items()} == {
        "ReplaceRules": (2, 2, {}),
        "DetachGroup": (2, 1, {}),
        "SetServerGroups": (2, 1, {}),
        "DeleteServer": (1, 1, {}),
        "addresses": (2, 1, {}),
        "agent_id": (2, 1, {}),
        "group_ids": (2, 1, {}),
    }
    unused = site.system.group("unused", 443)
    assert outcome(site.would(GroupServiceStub, "DeleteGroup", groups.DeleteGroupRequest(id=unused))) == (0, 0, {})


def test_what_takes_nothing_away_says_nothing_of_flows(site: Site) -> None:
    request = rules.CreateRuleRequest(project=site.system.project, group_id=site.spare, validate_only=True)
    request.rule.CopyFrom(types.RuleSpec(direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_ANY, cidr="10.0.0.0/8"))
    assert not site.system.ask(RuleServiceStub, "CreateRule", request).preview.HasField("flows_cut")
    about_text = rules.UpdateRuleRequest(project=site.system.project, id=site.rules[22], description="login", validate_only=True)
    about_text.update_mask.paths.append("description")
    assert not site.system.ask(RuleServiceStub, "UpdateRule", about_text).preview.HasField("flows_cut")
    # What is made, not tried, has no preview.
    request = rules.DeleteRuleRequest(project=site.system.project, id=site.rules[80])
    assert not site.system.ask(RuleServiceStub, "DeleteRule", request).HasField("preview")


@pytest.fixture
def stopped(shared: System) -> Iterator[System]:
    """The agent a2 is stopped: its stream is there, it says nothing."""
    popen = shared.stack.agents["a2"].popen
    assert popen is not None
    popen.send_signal(signal.SIGSTOP)
    yield shared
    popen.send_signal(signal.SIGCONT)


def test_an_agent_that_is_silent_or_away_is_named_and_the_others_are_counted(site: Site, request: pytest.FixtureRequest) -> None:
    site.connect("w1", 22)
    site.connect("w2", 22)
    system: System = request.getfixturevalue("stopped")
    began = time.monotonic()
    flows, counted, uncounted = outcome(site.would_delete_rule(22))
    assert (flows, counted, list(uncounted)) == (1, 1, ["a2"])
    # Its stream may just be found dead meanwhile.
    assert uncounted["a2"] in ("no answer within 1 s", "it lost its connection")
    assert time.monotonic() - began < 10
    wait_until(lambda: not system.agent("a2").connected, "an agent that says nothing is given up")
    assert outcome(site.would_delete_rule(22)) == (1, 1, {"a2": "not connected"})


def test_it_is_counted_again_when_it_goes_on(site: Site) -> None:
    wait_until(lambda: site.system.agent("a2").connected, "it is back")
    assert site.system.wait_in_force().in_force
    site.connect("w2", 22)
    assert outcome(site.would_delete_rule(22)) == (1, 2, {})


def test_an_agent_that_never_came_is_named(site: Site) -> None:
    site.system.server("w3", "10.0.0.11", "a-nobody", site.web)
    assert outcome(site.would_delete_rule(22)) == (0, 2, {"a-nobody": "not connected"})
