"""INVALID_ARGUMENT: a value that is none is refused with its field, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
from api_world import ANY, ANYWHERE, ICMP, NUMBER, UDP, Api, masked, on_port, rule

LONG = "x" * 129
LONG_TEXT = "x" * 513
NO_NAMES = ["", LONG, "a/b", " a", "a ", "a\tb", "a\nb", "\u202ea"]


def refused_fields(api: Api, method: str, **values: Any) -> list[str]:
    error = api.refused(method, **values)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_VALUE")
    for field in error.fields:
        assert field in error.message
    return error.fields


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("rule.direction", rule(direction=None)),
        ("rule.direction", rule(direction=3)),
        ("rule.protocol", rule(protocol=None)),
        ("rule.protocol", rule(protocol=99)),
        ("rule.protocol_number", rule(protocol=NUMBER, ports=None)),
        ("rule.protocol_number", rule(protocol=NUMBER, protocol_number=256, ports=None)),
        ("rule.protocol_number", rule(protocol_number=6)),
        ("rule.remote", rule(cidr=None)),
        ("rule.group_id", rule(cidr=None, group_id="")),
        ("rule.cidr", rule(cidr="")),
        ("rule.cidr", rule(cidr="10.0.0.0/33")),
        ("rule.cidr", rule(cidr="10.0.0.0/-1")),
        ("rule.cidr", rule(cidr="10.0.0.0/08")),
        ("rule.cidr", rule(cidr="10.0.0.0/")),
        ("rule.cidr", rule(cidr="10.0.0.0/255.0.0.0")),
        ("rule.cidr", rule(cidr="10.0.0.0/0.0.0.255")),
        ("rule.cidr", rule(cidr="010.0.0.0/8")),
        ("rule.cidr", rule(cidr="10.0.0.256")),
        ("rule.cidr", rule(cidr="10.0.0")),
        ("rule.cidr", rule(cidr=" 10.0.0.0/8")),
        ("rule.cidr", rule(cidr="10.0.0.0 /8")),
        ("rule.cidr", rule(cidr="10.0.0.0/8 ")),
        ("rule.cidr", rule(cidr="10.0.0.0/٨")),
        ("rule.cidr", rule(cidr="2001:db8::/129")),
        ("rule.cidr", rule(cidr="2001:db8::/ffff::")),
        ("rule.cidr", rule(cidr="fe80::1%eth0")),
        ("rule.cidr", rule(cidr="::ffff:10.0.0.1")),
        ("rule.cidr", rule(cidr="::ffff:0:0/96")),
        ("rule.cidr", rule(cidr="web.example")),
        ("rule.ports.first", rule(ports={"first": 0, "last": 22})),
        ("rule.ports.first", rule(ports={"first": 0, "last": 0})),
        ("rule.ports.first", rule(ports={"first": 65536, "last": 0})),
        ("rule.ports.last", rule(ports={"first": 22, "last": 65536})),
        ("rule.ports", rule(ports={"first": 23, "last": 22})),
        ("rule.ports", rule(protocol=ICMP)),
        ("rule.ports", rule(protocol=ANY)),
        ("rule.ports", rule(protocol=NUMBER, protocol_number=47)),
        ("rule.ports", rule(protocol=NUMBER, protocol_number=58)),
        ("rule.icmp_type", rule(protocol=ICMP, ports=None, icmp_type=256)),
        ("rule.icmp_code", rule(protocol=ICMP, ports=None, icmp_type=8, icmp_code=256)),
        ("rule.icmp_code", rule(protocol=ICMP, ports=None, icmp_code=0)),
        ("rule.icmp_type", rule(ports=None, icmp_type=8)),
        ("rule.icmp_type", rule(protocol=ANY, ports=None, icmp_type=8)),
        ("rule.description", rule(description=LONG_TEXT)),
    ],
    ids=str,
)
def test_a_rule_that_can_not_be_in_force_is_refused_with_its_field(api: Api, field: str, spec: dict[str, Any]) -> None:
    group_id = api.group("web")
    assert refused_fields(api, "CreateRule", group_id=group_id, rule=spec) == [field]
    assert len(api.rule_ids(group_id)) == 2


def test_each_bad_row_of_a_bulk_call_is_named_and_no_row_is_kept(api: Api) -> None:
    group_id = api.group("web")
    before = api.rule_ids(group_id)
    rows = [rule(), rule(cidr="10.0.0.0/33"), on_port(80), on_port(0), rule(direction=None)]
    expected = ["rules[1].cidr", "rules[3].ports.first", "rules[4].direction"]
    for method in ("BatchCreateRules", "ReplaceRules"):
        assert refused_fields(api, method, group_id=group_id, rules=rows) == expected
        assert api.rule_ids(group_id) == before


@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
def test_what_is_no_name_names_nothing(api: Api, name: str) -> None:
    group_id = api.group("web")
    assert refused_fields(api, "CreateGroup", name=name) == ["name"]
    assert refused_fields(api, "UpdateGroup", id=group_id, name=name, update_mask=masked("name")) == ["name"]
    assert refused_fields(api, "CreateServer", id=name, addresses=["10.0.0.1"]) == ["id"]
    assert refused_fields(api, "CreateGroup", project=name, name=name) == ["project", "name"]
    for method in ("ListGroups", "ListRules", "ListServers", "ListAttachments"):
        assert refused_fields(api, method, project=name) == ["project"]
    if name:
        # A server needs neither a name nor an agent, but what is given must be one.
        assert refused_fields(api, "CreateServer", id="s", addresses=["10.0.0.1"], name=name) == ["name"]
        assert refused_fields(api, "CreateServer", id="s", addresses=["10.0.0.1"], agent_id=name) == ["agent_id"]


@pytest.mark.parametrize("name", ["x" * 128, "a b", "Ünïcode-✓", "10.0.0.1"])
def test_the_longest_and_the_oddest_names_are_taken(api: Api, name: str) -> None:
    assert api.call("CreateGroup", name=name, description="x" * 512).group.name == name
    assert api.call("CreateServer", id=name, name=name, agent_id=name, addresses=["10.0.0.1"]).server.id == name


@pytest.mark.parametrize(
    ("fields", "addresses"),
    [
        (["addresses"], []),
        (["addresses[0]"], [""]),
        (["addresses[1]"], ["10.0.0.1", "10.0.0.256"]),
        (["addresses[1]"], ["10.0.0.1", "10.0.0.1"]),
        (["addresses[1]"], ["2001:db8::1", "2001:DB8:0::1"]),
        (["addresses[0]", "addresses[2]"], ["10.0.0.0/8", "10.0.0.1", "fe80::1%eth0"]),
        (["addresses[0]"], ["::ffff:10.0.0.1"]),
        (["addresses[0]"], ["127.0.0.1"]),
        (["addresses[0]"], ["::1"]),
        (["addresses[0]"], ["0.0.0.0"]),
        (["addresses[0]"], ["::"]),
        (["addresses[0]"], ["224.0.0.1"]),
        (["addresses[0]"], ["ff02::1"]),
        (["addresses[0]"], ["255.255.255.255"]),
        (["addresses[0]"], ["010.0.0.1"]),
        (["addresses[0]"], [" 10.0.0.1"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_no_server_can_have_as_address_is_refused(api: Api, fields: list[str], addresses: list[str]) -> None:
    api.server("s", "10.9.0.1")
    assert refused_fields(api, "CreateServer", id="t", addresses=addresses) == fields
    assert refused_fields(api, "UpdateServer", id="s", addresses=addresses, update_mask=masked("addresses")) == fields


@pytest.mark.parametrize(
    ("fields", "method", "values"),
    [
        # Ids that must be named.
        (["id"], "GetGroup", {}),
        (["id"], "UpdateGroup", {"name": "x", "update_mask": masked("name")}),
        (["id", "name"], "UpdateGroup", {"update_mask": masked("name")}),
        (["id"], "DeleteGroup", {}),
        (["group_id"], "CreateRule", {"rule": rule()}),
        (["group_id"], "BatchCreateRules", {"rules": [rule()]}),
        (["group_id"], "ReplaceRules", {}),
        (["id"], "GetRule", {}),
        (["id"], "UpdateRule", {"update_mask": masked("description")}),
        (["id"], "DeleteRule", {}),
        (["id"], "GetServer", {}),
        (["id"], "UpdateServer", {"update_mask": masked("name")}),
        (["id"], "DeleteServer", {}),
        (["server_id"], "AttachGroup", {"group_id": "$web"}),
        (["group_id"], "AttachGroup", {"server_id": "w1"}),
        (["server_id"], "DetachGroup", {"group_id": "$web"}),
        (["group_id"], "DetachGroup", {"server_id": "w1"}),
        (["server_id"], "SetServerGroups", {"group_ids": ["$web"]}),
        (["server_id"], "GetEffectiveRuleset", {}),
        (["id"], "GetAgent", {}),
        # A rule that is not there at all.
        (["rule.direction", "rule.protocol", "rule.remote"], "CreateRule", {"group_id": "$web"}),
        # Lists that are empty, too long for one call or name something twice.
        (["rules"], "BatchCreateRules", {"group_id": "$web"}),
        (["rules"], "BatchCreateRules", {"group_id": "$web", "rules": [on_port(n + 1) for n in range(1001)]}),
        (["rules"], "ReplaceRules", {"group_id": "$web", "rules": [on_port(n + 1) for n in range(1001)]}),
        (["group_ids"], "SetServerGroups", {"server_id": "w1"}),
        (["group_ids"], "UpdateServer", {"id": "w1", "update_mask": masked("group_ids")}),
        (["group_ids[1]"], "SetServerGroups", {"server_id": "w1", "group_ids": ["$web", "$web"]}),
        (["group_ids[2]"], "UpdateServer", {"id": "w1", "group_ids": ["$db", "$web", "$db"], "update_mask": masked("group_ids")}),
        (["group_ids[1]"], "CreateServer", {"id": "s", "addresses": ["10.0.0.9"], "group_ids": ["$web", "$web"]}),
        (["group_ids[1]"], "SetServerGroups", {"server_id": "w1", "group_ids": ["$web", ""]}),
        # Update masks.
        (["update_mask"], "UpdateGroup", {"id": "$web", "name": "x"}),
        (["update_mask"], "UpdateGroup", {"id": "$web", "update_mask": masked("rules")}),
        (["update_mask"], "UpdateGroup", {"id": "$web", "name": "x", "update_mask": masked("name", "name")}),
        (["update_mask"], "UpdateRule", {"id": "$ssh", "description": "x"}),
        (["update_mask"], "UpdateRule", {"id": "$ssh", "update_mask": masked("spec.cidr")}),
        (["update_mask"], "UpdateServer", {"id": "w1", "name": "x"}),
        (["update_mask"], "UpdateServer", {"id": "w1", "update_mask": masked("id")}),
        (["update_mask"], "UpdateServer", {"id": "w1", "update_mask": masked("*")}),
        # Texts.
        (["description"], "CreateGroup", {"name": "x", "description": LONG_TEXT}),
        (["description"], "UpdateGroup", {"id": "$web", "description": LONG_TEXT, "update_mask": masked("description")}),
        (["description"], "UpdateRule", {"id": "$ssh", "description": LONG_TEXT, "update_mask": masked("description")}),
        (["name"], "UpdateServer", {"id": "w1", "name": LONG, "update_mask": masked("name")}),
        (["agent_id"], "UpdateServer", {"id": "w1", "agent_id": "a/b", "update_mask": masked("agent_id")}),
        (["request_id"], "CreateGroup", {"name": "x", "request_id": LONG}),
        (["others_planned"], "CreateGroup", {"name": "x", "others_planned": 1}),
        (["others_planned"], "CreateServer", {"id": "s", "addresses": ["10.0.0.3"], "others_planned": -1}),
        (["request_id"], "CreateRule", {"group_id": "$web", "rule": on_port(80), "request_id": LONG}),
        # Pages.
        (["page_token"], "ListGroups", {"page_token": "x"}),
        (["page_token"], "ListRules", {"page_token": "eyJ9"}),
        (["page_token"], "ListServers", {"page_token": "é"}),
        (["page_token"], "ListAttachments", {"page_token": "AAAA"}),
        (["page_token"], "ListAgents", {"page_token": "AAAA"}),
        (["address"], "ListServers", {"address": "10.0.0.0/8"}),
        # Questions.
        (["revision"], "WaitForRevision", {"revision": 2**63}),
        (["timeout"], "WaitForRevision", {"revision": 0, "timeout": {"seconds": -1}}),
        (["timeout"], "WaitForRevision", {"revision": 0, "timeout": {"seconds": 3601}}),
    ],
    ids=lambda value: str(value)[:70],
)
def test_a_request_that_makes_no_sense_is_refused_with_its_field(
    stocked: Api, fields: list[str], method: str, values: dict[str, Any]
) -> None:
    assert refused_fields(stocked, method, **values) == fields


ONE, TWO = {"server_id": "w1"}, {"server_id": "d1"}
AWAY = {"address": "203.0.113.9"}


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        (["source"], {"source": AWAY, "destination": AWAY}),
        (["source"], {"source": {}, "destination": TWO}),
        (["destination"], {"source": ONE}),
        (["source.server_id"], {"source": {"server_id": ""}, "destination": TWO}),
        (["source.address"], {"source": {"address": "10.0.0"}, "destination": TWO}),
        (["source.address"], {"source": {"address": "10.0.0.0/8"}, "destination": TWO}),
        (["source.server_address"], {"source": {**ONE, "server_address": "10.0.0.2"}, "destination": TWO}),
        (["source.server_address"], {"source": {**ONE, "server_address": "x"}, "destination": TWO}),
        (["destination"], {"source": {**ONE, "server_address": "2001:db8::1"}, "destination": TWO}),
        (["protocol"], {"protocol": 0}),
        (["protocol"], {"protocol": ANY, "port": 0}),
        (["protocol_number"], {"protocol": NUMBER, "port": 0}),
        (["protocol_number"], {"protocol_number": 6}),
        (["port"], {"port": 0}),
        (["port"], {"port": 65536}),
        (["port"], {"protocol": ICMP, "port": 1}),
        (["port"], {"protocol": NUMBER, "protocol_number": 47, "port": 1}),
        (["icmp_type"], {"icmp_type": 8}),
        (["icmp_type"], {"protocol": ICMP, "port": 0, "icmp_type": 256}),
        (["icmp_code"], {"protocol": ICMP, "port": 0, "icmp_code": 256}),
        (["icmp_code"], {"protocol": UDP, "icmp_code": 1}),
    ],
    ids=lambda value: str(value)[:70],
)
def test_a_flow_that_can_not_be_is_refused_with_its_field(stocked: Api, fields: list[str], question: dict[str, Any]) -> None:
    asked = {"source": ONE, "destination": TWO, "protocol": "PROTOCOL_TCP", "port": 3306}
    assert stocked.call("ExplainFlow", **asked).judgements
    ends = {"destination": {}} if "destination" in fields and "destination" not in question else {}
    assert refused_fields(stocked, "ExplainFlow", **{**asked, **question, **ends}) == fields


def test_of_two_remotes_the_wire_carries_one(api: Api) -> None:
    # A oneof can't hold two: the last one set counts. sgctl refuses two (tests/controller/cli/test_rule_words.py).
    group_id = api.group("web")
    spec = rule(cidr="10.0.0.0/8") | ANYWHERE
    assert api.call("CreateRule", group_id=group_id, rule=spec).rule.spec.WhichOneof("remote") in {"cidr", "anywhere"}
