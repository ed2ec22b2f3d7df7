"""Limits that an admin sets for one project: they count where the defaults did, at once, for that project alone."""

from __future__ import annotations

from typing import Any

import pytest
from api_world import Api, on_port
from google.rpc import error_details_pb2 as details

from secgroups.v1 import limit_service_pb2 as pb

GROUPS = pb.LIMIT_KIND_GROUPS_PER_PROJECT
RULES = pb.LIMIT_KIND_RULES_PER_GROUP
GROUPS_OF_SERVER = pb.LIMIT_KIND_GROUPS_PER_SERVER
SERVERS = pb.LIMIT_KIND_SERVERS_PER_PROJECT
ADDRESSES = pb.LIMIT_KIND_ADDRESSES_PER_SERVER
ALL = (GROUPS, RULES, GROUPS_OF_SERVER, SERVERS, ADDRESSES)


def set_limits(api: Api, limits: dict[int, int | None], **values: Any) -> Any:
    """Set limits by kind, None for the default."""
    changes = [{"kind": kind} if most is None else {"kind": kind, "most": most} for kind, most in limits.items()]
    return api.call("UpdateLimits", changes=changes, **values)


def limits_of(api: Api) -> dict[int, pb.Limit]:
    return {limit.kind: limit for limit in api.call("GetLimits").limits.limits}


@pytest.mark.parametrize(
    ("kind", "room", "method", "values"),
    [
        (GROUPS, 4, "CreateGroup", {"name": "third"}),
        (RULES, 5, "CreateRule", {"group_id": "$full", "rule": on_port(3)}),
        (GROUPS_OF_SERVER, 3, "AttachGroup", {"server_id": "s1", "group_id": "$default"}),
        (GROUPS_OF_SERVER, 3, "SetServerGroups", {"server_id": "s2", "group_ids": ["$full", "$empty", "$default"]}),
        (SERVERS, 3, "CreateServer", {"id": "s3", "addresses": ["10.0.0.9"]}),
        (ADDRESSES, 1001, "UpdateServer", {"id": "s2", "addresses": [f"10.1.{n >> 8}.{n & 255}" for n in range(1001)]}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_raised_limit_gives_room_where_it_counts_and_its_reset_takes_it_away(
    small: Api, kind: int, room: int, method: str, values: dict[str, Any]
) -> None:
    full, empty = small.group("full", on_port(1), on_port(2)), small.group("empty")
    small.names["default"] = small.default_id()
    small.server("s1", "10.0.0.1", "2001:db8::1", groups=(full, empty))
    small.server("s2", "10.0.0.2")
    if method == "UpdateServer":
        values = {**values, "update_mask": {"paths": ["addresses"]}}
    set_limits(small, {kind: room - 1})
    refused = small.refused(method, **values)
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert str(room - 1) in refused.detail(details.QuotaFailure).violations[0].description
    set_limits(small, {kind: None})
    assert small.refused(method, **values).code == "RESOURCE_EXHAUSTED"
    set_limits(small, {kind: room})
    assert small.call(method, **values)


def test_the_error_names_the_limit_its_value_and_who_can_raise_it(api: Api) -> None:
    set_limits(api, {GROUPS: 1})
    refused = api.refused("CreateGroup", name="web")
    assert "the most allowed is 1; have fewer" in refused.message
    assert f"let an admin raise groups_per_project of project {api.project}" in refused.message


def test_below_what_is_used_everything_stays_and_only_more_is_refused(api: Api) -> None:
    group_id = api.group("web", *(on_port(port) for port in range(1, 6)))
    api.server("s1", "10.0.0.1", "10.0.0.2", groups=(group_id,))
    set_limits(api, dict.fromkeys(ALL, 1))
    assert len(api.rule_ids(group_id)) == 7
    assert api.refused("CreateRule", group_id=group_id, rule=on_port(9)).code == "RESOURCE_EXHAUSTED"
    assert api.refused("CreateServer", id="s2", addresses=["10.0.0.9"]).code == "RESOURCE_EXHAUSTED"
    # What makes it less, or leaves it as it is, is nobody's concern.
    api.call("DeleteRule", id=api.rule_ids(group_id)[-1])
    api.call("UpdateServer", id="s1", name="renamed", update_mask={"paths": ["name"]})
    assert api.refused("CreateRule", group_id=group_id, rule=on_port(9)).code == "RESOURCE_EXHAUSTED"
    shown = limits_of(api)
    assert (shown[RULES].most, shown[RULES].used, shown[RULES].used_by) == (1, 6, group_id)


def test_another_project_keeps_its_own(api: Api, other: Api) -> None:
    set_limits(api, {GROUPS: 1})
    other.group("web")
    assert limits_of(other)[GROUPS].most == limits_of(api)[GROUPS].default_most == 500


def test_limits_are_shown_with_default_override_and_use(api: Api) -> None:
    assert [(limit.most, limit.default_most, limit.HasField("override_most"), limit.used) for limit in limits_of(api).values()] == [
        (500, 500, False, 0), (200, 200, False, 0), (16, 16, False, 0), (20_000, 20_000, False, 0), (32, 32, False, 0),
    ]  # fmt: skip
    web = api.group("web", on_port(1))
    api.server("s1", "10.0.0.1", "10.0.0.2", groups=(web, api.default_id()))
    api.server("s2", "10.0.0.3", groups=(web,))
    answer = set_limits(api, {SERVERS: 7})
    assert list(answer.limits.limits) == list(limits_of(api).values())
    assert [(limit.most, limit.override_most, limit.used, limit.used_by) for limit in answer.limits.limits] == [
        (500, 0, 2, ""), (200, 0, 3, limits_of(api)[RULES].used_by), (16, 0, 2, "s1"), (7, 7, 2, ""), (32, 0, 2, "s1"),
    ]  # fmt: skip
    assert {limit.used_by for limit in answer.limits.limits} <= {"", "s1", web, api.default_id()}


def test_a_limit_set_twice_to_the_same_changes_nothing_and_a_stale_etag_is_aborted(api: Api) -> None:
    first = set_limits(api, {RULES: 3})
    assert set_limits(api, {RULES: 3}).revision == first.revision
    set_limits(api, {RULES: 4}, etag=first.limits.etag)
    refused = api.refused("UpdateLimits", changes=[{"kind": RULES, "most": 5}], etag=first.limits.etag)
    assert refused.code == "ABORTED"
    set_limits(api, {RULES: None})
    assert api.call("GetLimits").limits.etag == "r0"


def test_a_trial_changes_nothing_and_a_repeated_request_has_the_same_answer(api: Api) -> None:
    before = api.revision()
    assert set_limits(api, {RULES: 3}, validate_only=True).limits.limits[1].most == 3
    assert (limits_of(api)[RULES].most, api.revision()) == (200, before)
    first = set_limits(api, {RULES: 3}, request_id="one")
    set_limits(api, {RULES: 9})
    assert set_limits(api, {RULES: 3}, request_id="one") == first
    assert limits_of(api)[RULES].most == 9


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("changes", []),
        ("changes[0].kind", [{"kind": 0, "most": 1}]),
        ("changes[0].kind", [{"kind": 99, "most": 1}]),
        ("changes[1].kind", [{"kind": RULES, "most": 1}, {"kind": RULES}]),
        ("changes[0].most", [{"kind": RULES, "most": 0}]),
        ("changes[0].most", [{"kind": RULES, "most": 100_001}]),
        ("changes[0].most", [{"kind": SERVERS, "most": 1_000_001}]),
        ("changes", [{"kind": RULES, "most": 1}] * 6),
    ],
    ids=str,
)
def test_what_is_no_limit_is_refused_with_its_field(api: Api, field: str, changes: list[dict[str, int]]) -> None:
    refused = api.refused("UpdateLimits", changes=changes)
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", [field])


def test_the_largest_values_are_taken(api: Api) -> None:
    answer = set_limits(api, {kind: 100_000 if kind == RULES else 1_000_000 for kind in ALL})
    assert [limit.most for limit in answer.limits.limits] == [1_000_000, 100_000, 1_000_000, 1_000_000, 1_000_000]


def test_projects_with_limits_of_their_own_are_listed_page_by_page(api: Api, other: Api) -> None:
    for each in (api, other):
        set_limits(each, {GROUPS: 9, ADDRESSES: 64})
    found: list[pb.LimitOverrides] = []
    token = ""
    while True:
        page = api.call("ListLimitOverrides", page_size=1, page_token=token)
        assert len(page.projects) <= 1
        found += page.projects
        token = page.next_page_token
        if not token:
            break
    names = [each.project for each in found]
    assert names == sorted(names)
    own = next(each for each in found if each.project == api.project)
    assert [(each.kind, each.most) for each in own.overrides] == [(GROUPS, 9), (ADDRESSES, 64)]
    set_limits(api, {GROUPS: None, ADDRESSES: None})
    assert api.project not in {each.project for each in api.call("ListLimitOverrides", page_size=1000).projects}
