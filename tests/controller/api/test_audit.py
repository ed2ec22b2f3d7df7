"""Who changed what: lists and watches of the change log, as a client sees them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from api_world import Target

from secgroups.v1 import audit_service_pb2 as pb
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import types_pb2 as types
from secgroups.v1.audit_service_pb2_grpc import AuditServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

TIMEOUT_S = 20.0


class Trail:
    """A project of its own, short ways to change it, and its log."""

    def __init__(self, channel: grpc.Channel, project: str) -> None:
        self.project = project
        self.audit = AuditServiceStub(channel)
        self._groups = GroupServiceStub(channel)
        self._rules = RuleServiceStub(channel)
        self._servers = ServerServiceStub(channel)

    def group(self, name: str) -> str:
        return self._groups.CreateGroup(groups.CreateGroupRequest(project=self.project, name=name), timeout=TIMEOUT_S).group.id

    def rename(self, group_id: str, name: str) -> None:
        request = groups.UpdateGroupRequest(project=self.project, id=group_id, name=name)
        request.update_mask.paths.append("name")
        self._groups.UpdateGroup(request, timeout=TIMEOUT_S)

    def rule(self, group_id: str, port: int, remote: str) -> str:
        spec = types.RuleSpec(
            direction=types.DIRECTION_INGRESS,
            protocol=types.PROTOCOL_TCP,
            ports=types.PortRange(first=port),
            group_id=remote,
        )
        request = rules.CreateRuleRequest(project=self.project, group_id=group_id, rule=spec)
        return self._rules.CreateRule(request, timeout=TIMEOUT_S).rule.id

    def unrule(self, rule_id: str) -> int:
        return self._rules.DeleteRule(rules.DeleteRuleRequest(project=self.project, id=rule_id), timeout=TIMEOUT_S).revision

    def server(self, server_id: str, address: str, *group_ids: str) -> int:
        request = servers.CreateServerRequest(project=self.project, id=server_id, addresses=[address], group_ids=group_ids)
        return self._servers.CreateServer(request, timeout=TIMEOUT_S).revision

    def list(self, page_size: int = 0, **fields: str) -> list[pb.Change]:
        request = pb.ListChangesRequest(project=self.project, filter=pb.ChangeFilter(**fields), page_size=page_size)
        found: list[pb.Change] = []
        while True:
            page = self.audit.ListChanges(request, timeout=TIMEOUT_S)
            assert len(page.changes) <= (page_size or 100)
            found += page.changes
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


@pytest.fixture
def trail(controller: Target, request: pytest.FixtureRequest) -> Iterator[Trail]:
    with grpc.insecure_channel(controller.address) as channel:
        yield Trail(channel, f"audit-{abs(hash(request.node.name)) % 10**9}")


def kinds(changes: list[pb.Change]) -> list[tuple[str, str]]:
    """Return what happened to which kind of object, in order."""
    told = []
    for change in changes:
        thing = change.after if change.HasField("after") else change.before
        what = (
            "changed" if change.HasField("before") and change.HasField("after") else "made" if change.HasField("after") else "gone"
        )
        told.append((thing.WhichOneof("object"), what))
    return told


def test_every_change_is_told_the_newest_first_with_what_was_before(trail: Trail) -> None:
    web = trail.group("web")
    trail.rename(web, "www")
    (renamed, made) = trail.list(group_id=web)
    assert kinds([renamed, made]) == [("group", "changed"), ("group", "made")]
    assert (renamed.before.group.name, renamed.after.group.name) == ("web", "www")
    assert renamed.revision > made.revision
    assert renamed.peer.startswith("ipv4:127.0.0.1:")
    assert abs(renamed.time.ToSeconds() - time.time()) < 60
    assert renamed.token_id == ""


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_pages_of_any_size_make_the_same_list(trail: Trail, page_size: int) -> None:
    web = trail.group("web")
    for number in range(4):
        trail.rename(web, f"web-{number}")
    everything = trail.list()
    assert len(everything) >= 6
    assert [each.revision for each in everything] == sorted((each.revision for each in everything), reverse=True)
    assert trail.list(page_size) == everything


def test_the_trail_of_a_rule_has_the_members_of_the_groups_that_it_names_and_no_others(trail: Trail) -> None:
    web, clients, others = trail.group("web"), trail.group("clients"), trail.group("others")
    rule = trail.rule(web, 443, clients)
    joined = trail.server("s1", "10.0.0.1", clients)
    trail.server("s2", "10.0.0.2", others)
    deleted = trail.unrule(rule)
    told = trail.list(rule_id=rule)
    assert kinds(told) == [("rule", "gone"), ("server", "made"), ("rule", "made")]
    assert [each.revision for each in told[:2]] == [deleted, joined]


def test_another_project_shows_nothing_of_it(controller: Target, trail: Trail) -> None:
    web = trail.group("web")
    with grpc.insecure_channel(controller.address) as channel:
        other = Trail(channel, f"{trail.project}-other")
        assert other.list() == []
        assert other.list(group_id=web) == []
        request = pb.ListChangesRequest(filter=pb.ChangeFilter(group_id=web))
        assert len(other.audit.ListChanges(request, timeout=TIMEOUT_S).changes) == 1


def test_a_time_leaves_out_what_was_before_it(trail: Trail) -> None:
    web = trail.group("web")
    request = pb.ListChangesRequest(project=trail.project, filter=pb.ChangeFilter(group_id=web))
    (made,) = trail.audit.ListChanges(request, timeout=TIMEOUT_S).changes
    for nanos, count in ((0, 1), (1_000, 0)):
        request.since.FromNanoseconds(made.time.ToNanoseconds() + nanos)
        assert len(trail.audit.ListChanges(request, timeout=TIMEOUT_S).changes) == count


def test_a_watch_tells_all_since_a_revision_and_then_each_as_it_is_made(trail: Trail) -> None:
    web = trail.group("web")
    first = trail.list(group_id=web)[0].revision
    trail.rename(web, "a")
    request = pb.WatchChangesRequest(project=trail.project, filter=pb.ChangeFilter(group_id=web), after_revision=first)
    answers = trail.audit.WatchChanges(request, timeout=TIMEOUT_S)
    assert next(answers).changes[0].after.group.name == "a"
    later = threading.Timer(0.05, trail.rename, (web, "b"))
    later.start()
    assert next(answers).changes[0].after.group.name == "b"
    later.join()
    answers.cancel()


def test_a_watch_without_a_revision_begins_with_the_next_change(trail: Trail) -> None:
    web = trail.group("web")
    answers = trail.audit.WatchChanges(pb.WatchChangesRequest(project=trail.project), timeout=TIMEOUT_S)
    stopped = threading.Event()

    def rename() -> None:
        number = 0
        while not stopped.wait(0.05):
            trail.rename(web, f"n{number}")
            number += 1

    renaming = threading.Thread(target=rename)
    renaming.start()
    assert next(answers).changes[0].before.group.id == web
    stopped.set()
    renaming.join()
    answers.cancel()


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("page_size", pb.ListChangesRequest(page_size=-1)),
        ("page_size", pb.ListChangesRequest(page_size=1001)),
        ("page_token", pb.ListChangesRequest(page_token="x")),
        ("since", pb.ListChangesRequest(since={"nanos": -1})),
    ],
)
def test_a_list_that_can_not_be_is_refused_by_the_name_of_its_field(
    trail: Trail, field: str, request_: pb.ListChangesRequest
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        trail.audit.ListChanges(request_, timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(field)


def test_a_watch_from_a_revision_that_is_yet_to_come_is_refused(trail: Trail) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        next(trail.audit.WatchChanges(pb.WatchChangesRequest(after_revision=1 << 60), timeout=TIMEOUT_S))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "after_revision" in refused.value.details()
