"""What is refused because of what there is: unknown, taken, in use, last, full or changed; nothing is written then."""

from __future__ import annotations

from typing import Any

import pytest
from api_world import ANYWHERE, ICMP, NUMBER, TCP, Api, masked, on_port, rule
from google.rpc import error_details_pb2 as details

UNKNOWN = "01890000-0000-7000-8000-000000000000"
ONE_SERVER = {"id": "s", "addresses": ["10.0.0.9"]}


@pytest.mark.parametrize(
    ("kind", "method", "values"),
    [
        ("group", "GetGroup", {"id": ...}),
        ("group", "UpdateGroup", {"id": ..., "name": "x", "update_mask": masked("name")}),
        ("group", "DeleteGroup", {"id": ...}),
        ("group", "CreateRule", {"group_id": ..., "rule": rule()}),
        ("group", "CreateRule", {"group_id": "$web", "rule": rule(cidr=None, group_id=...)}),
        ("group", "BatchCreateRules", {"group_id": ..., "rules": [rule()]}),
        ("group", "BatchCreateRules", {"group_id": "$web", "rules": [on_port(80), rule(cidr=None, group_id=...)]}),
        ("group", "ReplaceRules", {"group_id": ...}),
        ("group", "ReplaceRules", {"group_id": "$web", "rules": [on_port(80), rule(cidr=None, group_id=...)]}),
        ("group", "ListRules", {"group_id": ...}),
        ("group", "ListRules", {"remote_group_id": ...}),
        ("group", "CreateServer", {**ONE_SERVER, "group_ids": ["$web", ...]}),
        ("group", "UpdateServer", {"id": "w1", "group_ids": [...], "update_mask": masked("group_ids")}),
        ("group", "AttachGroup", {"server_id": "w1", "group_id": ...}),
        ("group", "DetachGroup", {"server_id": "w1", "group_id": ...}),
        ("group", "SetServerGroups", {"server_id": "w1", "group_ids": ["$web", ...]}),
        ("group", "ListAttachments", {"group_id": ...}),
        ("group", "ListServers", {"group_id": ...}),
        ("rule", "GetRule", {"id": ...}),
        ("rule", "UpdateRule", {"id": ..., "update_mask": masked("description")}),
        ("rule", "DeleteRule", {"id": ...}),
        ("server", "GetServer", {"id": ...}),
        ("server", "UpdateServer", {"id": ..., "name": "x", "update_mask": masked("name")}),
        ("server", "DeleteServer", {"id": ...}),
        ("server", "AttachGroup", {"server_id": ..., "group_id": "$web"}),
        ("server", "DetachGroup", {"server_id": ..., "group_id": "$web"}),
        ("server", "SetServerGroups", {"server_id": ..., "group_ids": ["$web"]}),
        ("server", "ListAttachments", {"server_id": ...}),
        ("server", "GetEffectiveRuleset", {"server_id": ...}),
        ("server", "ExplainFlow", {"source": {"server_id": ...}, "destination": {"server_id": "w1"}, "protocol": TCP, "port": 1}),
        ("agent", "GetAgent", {"id": ...}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_unknown_malformed_or_of_another_project_is_not_found(
    stocked: Api, kind: str, method: str, values: dict[str, Any]
) -> None:
    theirs = {"group": "$theirs", "rule": "$their_rule", "server": "x1", "agent": "a2"}[kind]
    for missing in (theirs, UNKNOWN, "no-such-id", "x" * 3_000, "é\x00%s'--"):
        error = stocked.refused(method, **_put_in(values, missing))
        named = stocked.names[missing[1:]] if missing.startswith("$") else missing
        assert error.code == "NOT_FOUND", error
        assert error.reason == "NO_SUCH_OBJECT"
        info = error.detail(details.ResourceInfo)
        assert info.resource_type == kind
        assert info.resource_name[:200] == named[:200]


def _put_in(value: Any, missing: str) -> Any:
    if isinstance(value, dict):
        return {name: _put_in(item, missing) for name, item in value.items()}
    if isinstance(value, list):
        return [_put_in(item, missing) for item in value]
    return missing if value is ... else value


@pytest.mark.parametrize("spelling", ["default", "DEFAULT", "Default", "dEfAuLt"])
def test_the_name_default_is_reserved_in_every_spelling(stocked: Api, spelling: str) -> None:
    for method, values in (
        ("CreateGroup", {"name": spelling}),
        ("UpdateGroup", {"id": "$web", "name": spelling, "update_mask": masked("name")}),
    ):
        error = stocked.refused(method, **values)
        assert (error.code, error.reason) == ("ALREADY_EXISTS", "OBJECT_EXISTS")
        assert error.detail(details.ResourceInfo).resource_name == stocked.names["default"]


def test_a_name_is_taken_once_in_its_project_and_letters_count(stocked: Api, other: Api) -> None:
    for method, values in (
        ("CreateGroup", {"name": "web"}),
        ("UpdateGroup", {"id": "$db", "name": "web", "update_mask": masked("name")}),
    ):
        error = stocked.refused(method, **values)
        assert error.code == "ALREADY_EXISTS"
        assert stocked.names["web"] in error.message
    assert stocked.call("CreateGroup", name="Web").group.id != stocked.names["web"]
    assert other.call("CreateGroup", name="web").group.id != stocked.names["web"]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (rule(), rule()),
        (rule(), rule(description="another")),
        (rule(), rule(cidr="203.0.113.77/24")),
        (rule(), rule(ports={"first": 22})),
        (rule(), rule(protocol=NUMBER, protocol_number=6)),
        (rule(ports=None), rule(ports={"first": 1, "last": 65535})),
        (rule(cidr="10.0.0.1"), rule(cidr="10.0.0.1/32")),
        (rule(cidr="2001:db8::/32"), rule(cidr="2001:0DB8::1/32")),
        (rule(protocol=ICMP, ports=None), rule(protocol=NUMBER, protocol_number=58, ports=None)),
        (rule(cidr=None, **ANYWHERE), rule(cidr=None, **ANYWHERE)),
    ],
    ids=lambda value: str(sorted(value.items()))[:80],
)
def test_a_rule_that_is_there_already_is_refused_with_the_id_of_the_first(
    api: Api, first: dict[str, Any], again: dict[str, Any]
) -> None:
    group_id = api.group("web")
    first_id = api.call("CreateRule", group_id=group_id, rule=first).rule.id
    error = api.refused("CreateRule", group_id=group_id, rule=again)
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "OBJECT_EXISTS")
    info = error.detail(details.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("rule", first_id)
    assert first_id in error.message
    error = api.refused("BatchCreateRules", group_id=group_id, rules=[on_port(443), again])
    assert error.code == "ALREADY_EXISTS"
    assert "rules[1]" in error.message
    assert first_id in error.message
    other_group = api.group("db")
    assert api.call("CreateRule", group_id=other_group, rule=again).rule.id != first_id


@pytest.mark.parametrize("method", ["BatchCreateRules", "ReplaceRules"])
def test_a_rule_twice_in_one_bulk_call_is_refused_with_both_rows(api: Api, method: str) -> None:
    group_id = api.group("web")
    before = api.rule_ids(group_id)
    error = api.refused(method, group_id=group_id, rules=[on_port(1), on_port(2), on_port(3), on_port(2, description="again")])
    assert error.code == "ALREADY_EXISTS"
    assert "rules[3]" in error.message
    assert "rules[1]" in error.message
    assert api.rule_ids(group_id) == before


def test_a_server_id_and_an_address_are_taken_once_in_their_project(stocked: Api, other: Api) -> None:
    error = stocked.refused("CreateServer", id="w1", addresses=["10.0.0.7"])
    assert error.code == "ALREADY_EXISTS"
    assert error.detail(details.ResourceInfo).resource_name == "w1"
    for values in ({"addresses": ["10.0.0.8", "10.0.0.2"]}, {"addresses": ["2001:DB8:0::1"]}):
        error = stocked.refused("CreateServer", id="new", **values)
        assert error.code == "ALREADY_EXISTS"
        assert error.detail(details.ResourceInfo).resource_name in {"d1", "w1"}
    error = stocked.refused("UpdateServer", id="w1", addresses=["10.0.0.2"], update_mask=masked("addresses"))
    assert error.code == "ALREADY_EXISTS"
    assert "10.0.0.2" in error.message
    assert "d1" in error.message
    assert other.server("w1", "10.0.0.2").id == "w1"


def test_the_last_group_of_a_server_stays(stocked: Api) -> None:
    error = stocked.refused("DetachGroup", server_id="w1", group_id="$web")
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "LAST_GROUP")
    assert "w1" in error.message
    (violation,) = error.detail(details.PreconditionFailure).violations
    assert violation.type == "LAST_GROUP"
    stocked.call("AttachGroup", server_id="w1", group_id="$db")
    assert list(stocked.call("DetachGroup", server_id="w1", group_id="$web").server.group_ids) == [stocked.names["db"]]


def test_the_default_group_is_never_deleted_or_renamed(stocked: Api) -> None:
    for method, values in (
        ("DeleteGroup", {"id": "$default"}),
        ("UpdateGroup", {"id": "$default", "name": "other", "update_mask": masked("name")}),
    ):
        error = stocked.refused(method, **values)
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "DEFAULT_GROUP")
        assert stocked.names["default"] in error.message
    described = stocked.call("UpdateGroup", id="$default", description="ours", update_mask=masked("description")).group
    assert (described.name, described.description) == ("default", "ours")


def test_a_group_in_use_stays_and_the_error_names_who_uses_it(stocked: Api) -> None:
    error = stocked.refused("DeleteGroup", id="$web")
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "GROUP_IN_USE")
    subjects = [violation.subject for violation in error.detail(details.PreconditionFailure).violations]
    assert subjects == ["server/w1", f"rule/{stocked.names['mysql']}"]
    assert "w1" in error.message
    assert stocked.names["mysql"] in error.message
    stocked.call("DeleteServer", id="w1")
    assert stocked.refused("DeleteGroup", id="$web").reason == "GROUP_IN_USE"
    stocked.call("DeleteRule", id="$mysql")
    assert stocked.call("DeleteGroup", id="$web").group.name == "web"
    assert stocked.refused("GetRule", id="$ssh").code == "NOT_FOUND"


def test_a_rule_of_the_group_itself_does_not_count_as_use(api: Api) -> None:
    group_id = api.group("ring")
    api.rule(group_id, cidr=None, group_id=group_id)
    assert api.call("DeleteGroup", id=group_id).group.id == group_id


def test_detaching_what_is_not_attached_is_not_found(stocked: Api) -> None:
    error = stocked.refused("DetachGroup", server_id="w1", group_id="$db")
    assert error.code == "NOT_FOUND"
    assert error.detail(details.ResourceInfo).resource_type == "attachment"


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("UpdateGroup", {"id": "$web", "description": "x", "update_mask": masked("description")}),
        ("DeleteGroup", {"id": "$spare"}),
        ("ReplaceRules", {"group_id": "$web", "rules": [on_port(80)]}),
        ("UpdateRule", {"id": "$ssh", "description": "x", "update_mask": masked("description")}),
        ("DeleteRule", {"id": "$ssh"}),
        ("UpdateServer", {"id": "w1", "name": "x", "update_mask": masked("name")}),
        ("DeleteServer", {"id": "w1"}),
        ("SetServerGroups", {"server_id": "w1", "group_ids": ["$db"]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_etag_that_is_no_longer_the_object_s_is_aborted(stocked: Api, method: str, values: dict[str, Any]) -> None:
    stocked.group("spare")
    error = stocked.refused(method, **values, etag="r1")
    assert (error.code, error.reason) == ("ABORTED", "STALE_ETAG")
    present = _etag(stocked, method, values)
    assert present in error.message
    assert stocked.call(method, **values, etag=present).revision > 0


def _etag(api: Api, method: str, values: dict[str, Any]) -> str:
    if method == "SetServerGroups":
        return str(api.call("GetServer", id=values["server_id"]).server.etag)
    if method == "ReplaceRules":
        return str(api.call("GetGroup", id=values["group_id"]).group.etag)
    kind = method.removeprefix("Update").removeprefix("Delete")
    return str(getattr(api.call(f"Get{kind}", id=values["id"]), kind.lower()).etag)


@pytest.mark.parametrize(
    ("limit", "most", "method", "values"),
    [
        ("groups_per_project", 3, "CreateGroup", {"name": "third"}),
        ("rules_per_group", 4, "CreateRule", {"group_id": "$full", "rule": on_port(3)}),
        ("rules_per_group", 4, "BatchCreateRules", {"group_id": "$empty", "rules": [on_port(1), on_port(2), on_port(3)]}),
        ("rules_per_group", 4, "ReplaceRules", {"group_id": "$empty", "rules": [on_port(n) for n in range(1, 6)]}),
        ("groups_per_server", 2, "AttachGroup", {"server_id": "s1", "group_id": "$default"}),
        ("groups_per_server", 2, "SetServerGroups", {"server_id": "s2", "group_ids": ["$full", "$empty", "$default"]}),
        ("groups_per_server", 2, "SetServerGroups", {"server_id": "s2", "group_ids": [f"g{n}" for n in range(1001)]}),
        ("addresses_per_server", 2, "CreateServer", {"id": "s3", "addresses": [f"10.0.{n >> 8}.{n & 255}" for n in range(1001)]}),
        ("servers_per_project", 2, "CreateServer", {"id": "s3", "addresses": ["10.0.0.9"]}),
        (
            "addresses_per_server",
            2,
            "UpdateServer",
            {
                "id": "s1",
                "addresses": ["10.0.0.3", "10.0.0.4", "10.0.0.5"],
                "update_mask": masked("addresses"),
            },
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_beyond_a_limit_there_is_no_room_and_the_error_tells_the_bound(
    small: Api, limit: str, most: int, method: str, values: dict[str, Any]
) -> None:
    full, empty = small.group("full", on_port(1), on_port(2)), small.group("empty")
    small.names["default"] = small.default_id()
    small.server("s1", "10.0.0.1", "2001:db8::1", groups=(full, empty))
    small.server("s2", "10.0.0.2")
    error = small.refused(method, **values)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert str(most) in error.message
    (violation,) = error.detail(details.QuotaFailure).violations
    assert limit in violation.description
    assert str(most) in violation.description


def test_up_to_a_limit_there_is_room(small: Api) -> None:
    group_id = small.group("one", on_port(1))
    assert small.rule(group_id, ports={"first": 2}).id
    small.group("two")
    assert len(small.call("ReplaceRules", group_id=group_id, rules=[on_port(n) for n in range(1, 5)]).rules) == 4
