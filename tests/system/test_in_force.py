"""In force or not, and who is behind: asked of real agents, some of which are stopped, gone or on the move."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from raw_agent import raw_agent
from running_system import System, frozen, wait_until

from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import server_service_pb2 as servers_pb
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

WEB = "10.0.0.9"


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system("a1", "a2")


@pytest.fixture
def site(shared: System) -> System:
    """A controller and the agents a1 and a2, all of which run, and a project of its own."""
    shared.renew_project()
    return shared


def test_a_deleted_rule_ends_an_established_connection_and_the_same_one_goes_on_when_it_is_back(
    site: System,
) -> None:
    group_id = site.group("web")
    rule_id = site.rule(group_id, 22)
    site.server("w1", WEB, "a1", group_id)
    assert site.wait_in_force().in_force
    for expected, flags in (("NEW", "SYN"), ("ESTABLISHED", "SYN,ACK"), ("ESTABLISHED", "ACK")):
        assert site.decide("a1", "w1", WEB, 22, 50_000, flags) == expected
    assert site.wait_in_force(site.delete_rule(rule_id)).in_force
    assert site.decide("a1", "w1", WEB, 22, 50_000, "ACK") == "REVOKED"
    assert site.decide("a1", "w1", WEB, 22) == "NO_RULE"
    site.rule(group_id, 22)
    assert site.wait_in_force().in_force
    assert site.decide("a1", "w1", WEB, 22, 50_000, "ACK") == "ESTABLISHED"


def test_who_is_behind_is_named_with_the_reason(site: System) -> None:
    group_id = site.group("web", 80)
    site.server("w1", WEB, "a1", group_id)
    site.server("w2", "10.0.0.10", "a2", group_id)
    assert site.wait_in_force().in_force
    with frozen(site.stack.agents["a2"]):
        site.rule(group_id, 443)
        answer = site.wait_in_force(timeout_s=0.5)
        assert not answer.in_force
        assert answer.agents_touched == 2
        assert [each.agent_id for each in answer.lagging] == ["a2"]
        assert answer.lagging[0].reason
        assert answer.lagging[0].applied_revision < site.revision()
        # The other one is not held up.
        assert site.decide("a1", "w1", WEB, 443) == "NEW"
        wait_until(lambda: not site.agent("a2").connected, "an agent that says nothing is given up")
        assert "not connected" in site.wait_in_force(timeout_s=0).lagging[0].reason
    assert site.wait_in_force().in_force
    assert site.decide("a2", "w2", "10.0.0.10", 443) == "NEW"


def test_an_agent_that_never_came_is_behind_until_its_server_is_guarded_by_another(site: System) -> None:
    revision = site.server("w1", WEB, "ghost", site.group("web", 80))
    answer = site.wait_in_force(revision, timeout_s=0)
    assert [(each.agent_id, each.connected, each.applied_revision) for each in answer.lagging] == [("ghost", False, 0)]
    assert not answer.in_force
    site.move("w1", "a1")
    wait_until(lambda: site.decide("a1", "w1", WEB, 80) == "NEW", "the other agent guards it")


def test_a_server_on_the_move_is_guarded_at_every_moment(site: System) -> None:
    site.server("w1", WEB, "a1", site.group("web", 80))
    assert site.wait_in_force().in_force
    old, new = "a1", "a2"
    for _ in range(4):
        revision = site.move("w1", new)
        # Not for a moment is there nobody who has the ruleset: the old one lets go after the new one said it has it.
        while (new_said := site.decide(new, "w1", WEB, 80)) == "UNKNOWN_SERVER":
            old_said = site.decide(old, "w1", WEB, 80)
            assert old_said == "NEW" or site.decide(new, "w1", WEB, 80) == "NEW"
        assert new_said == "NEW"
        assert site.wait_in_force(revision).in_force
        wait_until(lambda left=old: site.decide(left, "w1", WEB, 80) == "UNKNOWN_SERVER", "the old one lets go")  # type: ignore[misc]
        old, new = new, old


def test_the_state_of_agents_is_told(site: System) -> None:
    """``late`` has not come yet when it is given a server, comes, and goes."""
    site.server("w1", WEB, "late", site.group("web", 80))
    told = site.agent("late")
    assert (told.connected, told.server_count, told.applied_revision, told.boot_id) == (False, 1, 0, "")
    assert not told.HasField("staleness")
    assert told.pending_revisions >= 1

    late = site.stack.start_agent("late")
    assert site.wait_in_force().in_force
    told = site.agent("late")
    assert (told.connected, told.server_count, told.applied_revision, told.pending_revisions) == (True, 1, site.revision(), 0)
    assert told.boot_id
    assert not told.rejected
    assert site.decide("late", "w1", WEB, 80) == "NEW"
    wait_until(lambda: site.agent("late").report.flows == 1, "the flow is reported")
    assert [agent.id for agent in site.agents()] == sorted(agent.id for agent in site.agents())
    assert {"a1", "a2", "late"} <= {agent.id for agent in site.agents() if agent.connected}

    late.stop()
    wait_until(lambda: not site.agent("late").connected, "it is gone")
    before = site.agent("late").staleness.ToMicroseconds()
    wait_until(lambda: site.agent("late").staleness.ToMicroseconds() > before, "it grows stale")
    site.rule(site.group("ssh"), 22)
    site.attach("w1", site.group("more", 443))
    told = site.agent("late")
    assert (told.connected, told.pending_revisions) == (False, 1)
    assert told.applied_revision < site.revision()


def test_what_an_agent_can_not_enforce_is_told_and_not_in_force(site: System) -> None:
    """A foreign agent, which knows all groups but the one with port 443."""
    group_id = site.group("web", 80)
    site.server("w1", WEB, "foreign", group_id)
    with raw_agent(site, "foreign", refuses_port=443) as foreign:
        assert site.wait_in_force().in_force
        revision = site.attach("w1", refused := site.group("modern", 443))
        wait_until(lambda: bool(site.agent("foreign").rejected), "the rejection is told")
        answer = site.wait_in_force(revision, timeout_s=0)
        (rejected,) = site.agent("foreign").rejected
        assert (rejected.object.kind, rejected.object.key, rejected.message) == (agents_pb.OBJECT_KIND_GROUP, refused, "port 443")
        assert not answer.in_force
        assert answer.agents_touched == 1
        assert f"rejected group {refused}" in answer.lagging[0].reason
        assert "port 443" in answer.lagging[0].reason
        # What does not concern the rejected object is in force, and the rejected version is not sent again.
        assert site.wait_in_force(site.delete_rule(site.rule(group_id, 22))).in_force
        assert foreign.group_ids.count(refused) == 1
        # A version that can be enforced takes the place of the one that can't.
        site.replace_rules(refused, 8443)
        assert site.wait_in_force().in_force
        assert not site.agent("foreign").rejected
        assert foreign.group_ids.count(refused) == 2


def test_a_project_sees_nothing_of_another(site: System) -> None:
    group_id = site.group("web", 80)
    site.server("w1", WEB, "a1", group_id)
    listed = site.ask(ServerServiceStub, "ListServers", servers_pb.ListServersRequest(project="other"))
    assert not listed.servers
    for stub, method, request in (
        (GroupServiceStub, "GetGroup", groups_pb.GetGroupRequest(project="other", id=group_id)),
        (ServerServiceStub, "DeleteServer", servers_pb.DeleteServerRequest(project="other", id="w1")),
        (
            ServerServiceStub,
            "CreateServer",
            servers_pb.CreateServerRequest(project="other", id="x", addresses=[WEB], group_ids=[group_id]),
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            site.ask(stub, method, request)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        assert site.project not in refused.value.details().split()  # type: ignore[attr-defined]
    # The same id and address in another project are other things.
    request = servers_pb.CreateServerRequest(project="other", id="w1", addresses=[WEB])
    assert site.ask(ServerServiceStub, "CreateServer", request).server.id == "w1"
