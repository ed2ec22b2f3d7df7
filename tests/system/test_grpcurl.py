"""A foreign client: grpcurl, which knows the API by reflection alone, lists, describes and calls every service."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from secgroups.lab.stack import Stack
from secgroups.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    group_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    verdict_service_pb2,
)

GRPCURL = str(Path(sys.executable).parent / "grpcurl")
TIMEOUT_S = 60
CONTROLLER_SERVICES = {f"secgroups.v1.{name}Service" for name in ("Group", "Rule", "Server", "Attachment", "Ruleset", "Agent")}
SYN = {
    "server": "p/s1",
    "direction": "DIRECTION_INGRESS",
    "source": "203.0.113.7",
    "destination": "10.0.0.9",
    "protocol": "PROTOCOL_TCP",
    "source_port": 40000,
    "destination_port": 22,
    "tcp_flags": ["TCP_FLAG_SYN"],
}


def packed_syn(server_handle: int) -> str:
    """Return ``SYN`` as a record, the way JSON carries bytes."""
    addresses = b"".join(ip_address(f"::ffff:{SYN[end]}").packed for end in ("source", "destination"))
    numbers = struct.pack("<IHHBBBB", server_handle, SYN["source_port"], SYN["destination_port"], 6, 4, 1, 2)
    return b64encode((addresses + numbers).ljust(64, b"\0")).decode()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GRPCURL, "-plaintext", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), ["h1"]) as running:
        yield running


@pytest.fixture(scope="module")
def called() -> set[str]:
    """The methods that tests have called with success."""
    return set()


class Client:
    """grpcurl, pointed at a controller or an agent."""

    def __init__(self, address: str, called: set[str]) -> None:
        self.address = address
        self._called = called

    def listed(self, *what: str) -> list[str]:
        done = run(self.address, *what)
        assert done.returncode == 0, done
        return done.stdout.splitlines()

    def call(self, method: str, **values: Any) -> Any:
        done = run("-d", json.dumps(values), self.address, f"secgroups.v1.{method}")
        assert done.returncode == 0, done
        self._called.add(method)
        return json.loads(done.stdout)

    def refused(self, method: str, **values: Any) -> str:
        done = run("-d", json.dumps(values), self.address, f"secgroups.v1.{method}")
        assert done.returncode != 0, done
        return done.stderr


@pytest.fixture(scope="module")
def controller(stack: Stack, called: set[str]) -> Client:
    return Client(stack.controller.address, called)


@pytest.fixture(scope="module")
def agent(stack: Stack, called: set[str]) -> Client:
    return Client(stack.agents["h1"].address, called)


TCP = {"direction": "DIRECTION_INGRESS", "protocol": "PROTOCOL_TCP"}


def rule(port: int, **remote: Any) -> dict[str, Any]:
    return {**TCP, "ports": {"first": port}, **(remote or {"anywhere": {}})}


def test_it_lists_what_is_served(stack: Stack, controller: Client, agent: Client) -> None:
    assert set(controller.listed("list")) >= {*CONTROLLER_SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
    assert "secgroups.v1.VerdictService" in agent.listed("list")
    assert "grpc.channelz.v1.Channelz" in Client(stack.controller.admin_address, set()).listed("list")


def test_it_describes_services_and_messages(controller: Client, agent: Client) -> None:
    assert (
        "  rpc ReplaceRules ( .secgroups.v1.ReplaceRulesRequest ) returns ( .secgroups.v1.ReplaceRulesResponse );"
        in controller.listed("describe", "secgroups.v1.RuleService")
    )
    assert any("oneof remote" in line for line in controller.listed("describe", "secgroups.v1.RuleSpec"))
    assert any("fragment_id" in line for line in agent.listed("describe", "secgroups.v1.Packet"))


def test_all_that_is_listed_can_be_described(stack: Stack, controller: Client, agent: Client) -> None:
    for client in (controller, agent, Client(stack.controller.admin_address, set())):
        described = {line.split()[0] for line in client.listed("describe") if line.endswith("is a service:")}
        assert described == set(client.listed("list"))


def test_reflection_answers_under_both_of_its_names(stack: Stack) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="secgroups.v1.RuleService")
    for address, symbol in (
        (stack.controller.address, "secgroups.v1.RuleService"),
        (stack.agents["h1"].address, "secgroups.v1.VerdictService"),
    ):
        request.file_containing_symbol = symbol
        for version in ("v1", "v1alpha"):
            with grpc.insecure_channel(address) as channel:
                ask = channel.stream_stream(
                    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                    request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                    response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
                )
                (answer,) = list(ask(iter([request]), timeout=TIMEOUT_S))
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(each)
                for each in answer.file_descriptor_response.file_descriptor_proto
            ]
            assert symbol in {f"{file.package}.{service.name}" for file in files for service in file.service}


def test_health_and_channelz_answer(stack: Stack) -> None:
    for address, service in (
        (stack.controller.address, "secgroups.v1.RuleService"),
        (stack.controller.admin_address, ""),
        (stack.agents["h1"].address, "secgroups.v1.VerdictService"),
    ):
        done = run("-d", json.dumps({"service": service}), address, "grpc.health.v1.Health/Check")
        assert json.loads(done.stdout) == {"status": "SERVING"}
    done = run(stack.controller.admin_address, "grpc.channelz.v1.Channelz/GetServers")
    assert json.loads(done.stdout)["server"]


def test_every_call_answers(controller: Client, agent: Client, called: set[str]) -> None:
    group = controller.call("GroupService/CreateGroup", project="p", name="web")["group"]
    spare = controller.call("GroupService/CreateGroup", project="p", name="spare")["group"]["id"]
    web = group["id"]
    assert group["rule_count"] == 2
    assert controller.call("GroupService/GetGroup", project="p", id=web)["group"]["name"] == "web"
    renamed = controller.call("GroupService/UpdateGroup", project="p", id=spare, name="other", update_mask={"paths": ["name"]})
    assert renamed["group"]["name"] == "other"
    assert {each["name"] for each in controller.call("GroupService/ListGroups", project="p")["groups"]} == {
        "default",
        "web",
        "other",
    }

    ssh = controller.call("RuleService/CreateRule", project="p", group_id=web, rule=rule(22, cidr="203.0.113.77/24"))["rule"]
    assert ssh["spec"]["cidr"] == "203.0.113.0/24"
    added = controller.call("RuleService/BatchCreateRules", project="p", group_id=web, rules=[rule(80), rule(443)])["rules"]
    assert controller.call("RuleService/GetRule", project="p", id=added[0]["id"])["rule"]["spec"]["ports"] == {
        "first": 80,
        "last": 80,
    }
    noted = controller.call(
        "RuleService/UpdateRule", project="p", id=ssh["id"], description="office", update_mask={"paths": ["description"]}
    )
    assert noted["rule"]["spec"]["description"] == "office"
    assert len(controller.call("RuleService/ListRules", project="p", group_id=web)["rules"]) == 5
    controller.call("RuleService/DeleteRule", project="p", id=added[1]["id"])
    swapped = controller.call("RuleService/ReplaceRules", project="p", group_id=spare, rules=[rule(8080)])
    assert len(swapped["rules"]) == 1
    assert any(preset["name"] == "ssh" for preset in controller.call("RuleService/ListPresets")["presets"])

    made = controller.call(
        "ServerService/CreateServer", project="p", id="s1", addresses=["10.0.0.9"], agent_id="h1", group_ids=[web]
    )
    controller.call("ServerService/CreateServer", project="p", id="s2", addresses=["10.0.0.10"])
    assert made["server"]["group_ids"] == [web]
    assert controller.call("ServerService/GetServer", project="p", id="s1")["server"]["agent_id"] == "h1"
    assert len(controller.call("ServerService/ListServers", project="p")["servers"]) == 2
    controller.call("ServerService/UpdateServer", project="p", id="s1", name="web-1", update_mask={"paths": ["name"]})
    controller.call("AttachmentService/AttachGroup", project="p", server_id="s1", group_id=spare)
    assert len(controller.call("AttachmentService/ListAttachments", project="p", server_id="s1")["attachments"]) == 2
    controller.call("AttachmentService/DetachGroup", project="p", server_id="s1", group_id=spare)
    last = controller.call("AttachmentService/SetServerGroups", project="p", server_id="s1", group_ids=[web])

    waited = controller.call("RulesetService/WaitForRevision", revision=last["revision"], timeout="30s")
    assert waited["in_force"] is True
    effective = controller.call("RulesetService/GetEffectiveRuleset", project="p", server_id="s1")
    assert {each["group_name"] for each in effective["ruleset"]["rules"]} == {"web"}
    away, inside = {"address": "198.51.100.1"}, {"server_id": "s1"}
    flow = {"project": "p", "source": away, "destination": inside, "protocol": "PROTOCOL_TCP", "port": 22}
    assert controller.call("RulesetService/ExplainFlow", **flow)["action"] == "ACTION_DENY"
    assert controller.call("AgentService/GetAgent", id="h1")["agent"]["connected"] is True
    assert [each["id"] for each in controller.call("AgentService/ListAgents")["agents"]] == ["h1"]

    assert agent.call("VerdictService/Explain", packet=SYN)["action"] == "ACTION_ALLOW"
    decided = agent.call("VerdictService/Decide", packet=SYN)
    assert (decided["reason"], decided["rule_id"]) == ("REASON_NEW", ssh["id"])
    assert agent.call("VerdictService/GetStats")["flows"] == "1"
    (handle,) = agent.call("VerdictService/DecideStream", servers=["p/s1"])["server_handles"]
    streamed = agent.call("VerdictService/DecideStream", records=packed_syn(handle))
    # An opening packet once more: allowed by its flow (reason 2) in row 9.
    assert b64decode(streamed["verdicts"])[:4] == bytes([1, 2, 0, 9])
    assert [each["rule_id"] for each in streamed["rules"]] == [ssh["id"]]
    (tracked,) = agent.call("VerdictService/ListFlows", server="p/s1", port=22)["flows"]
    assert (tracked["state"], tracked["remote_port"], tracked["rule_id"]) == ("FLOW_STATE_SYN_SENT", 40000, ssh["id"])

    controller.call("ServerService/DeleteServer", project="p", id="s1")
    controller.call("GroupService/DeleteGroup", project="p", id=spare)


def test_a_watched_ruleset_is_told_anew_after_a_change(controller: Client, called: set[str]) -> None:
    group_id = controller.call("GroupService/CreateGroup", project="w", name="web")["group"]["id"]
    controller.call("ServerService/CreateServer", project="w", id="s1", addresses=["10.0.0.9"], group_ids=[group_id])
    method = "RulesetService/WatchEffectiveRuleset"
    command = [GRPCURL, "-plaintext", "-d", '{"project": "w", "server_id": "s1"}', controller.address, f"secgroups.v1.{method}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        # A watch that says nothing more would hold the test for ever.
        timer = threading.Timer(TIMEOUT_S, watching.kill)
        timer.start()
        try:
            counts = []
            for text in objects(watching.stdout):
                counts.append(len(text["ruleset"].get("rules", [])))
                if len(counts) == 1:
                    controller.call("RuleService/CreateRule", project="w", group_id=group_id, rule=rule(80))
                else:
                    break
        finally:
            timer.cancel()
            watching.kill()
    assert counts == [2, 3]
    called.add(method)


def objects(lines: Any) -> Iterator[Any]:
    """Yield the JSON objects that are printed one after another over several lines."""
    text = ""
    for line in lines:
        text += line
        if line.rstrip() == "}":
            yield json.loads(text)
            text = ""


def test_watched_verdicts_are_told_as_they_are_given(agent: Client, called: set[str]) -> None:
    method = "VerdictService/WatchVerdicts"
    wanted = json.dumps({"servers": ["v/s9"], "reasons": ["REASON_UNKNOWN_SERVER"]})
    command = [GRPCURL, "-plaintext", "-d", wanted, agent.address, f"secgroups.v1.{method}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        timer = threading.Timer(TIMEOUT_S, watching.kill)
        timer.start()
        try:
            told = objects(watching.stdout)
            # The message with which a watch begins.
            assert next(told) == {}
            assert agent.call("VerdictService/Decide", packet=SYN | {"server": "v/s9"})["reason"] == "REASON_UNKNOWN_SERVER"
            (event,) = next(told)["events"]
        finally:
            timer.cancel()
            watching.kill()
    assert (event["packet"], event["action"]) == (SYN | {"server": "v/s9"}, "ACTION_DENY")
    called.add(method)


def test_a_subscriber_of_its_own_gets_what_its_server_needs(controller: Client, called: set[str]) -> None:
    group_id = controller.call("GroupService/CreateGroup", project="s", name="web")["group"]["id"]
    controller.call(
        "ServerService/CreateServer", project="s", id="s1", addresses=["10.0.0.9"], agent_id="by-hand", group_ids=[group_id]
    )
    hello = {"hello": {"agent_id": "by-hand", "boot_id": "b1", "version": "0"}}
    method = "AgentService/Subscribe"
    done = run("-max-time", "5", "-d", json.dumps(hello), controller.address, f"secgroups.v1.{method}")
    messages = list(objects(done.stdout.splitlines(keepends=True)))
    assert messages[0]["welcome"]["mode"] == "SYNC_MODE_SNAPSHOT", done
    (update,) = [each["update"] for each in messages if "update" in each]
    assert [each["server"] for each in update["servers"]] == ["s/s1"]
    assert [each["name"] for each in update["groups"]] == ["web"]
    assert any("sync_point" in each for each in messages)
    called.add(method)


def test_no_call_of_the_api_was_left_out(called: set[str]) -> None:
    """Runs after the calls above: a new call of the API belongs into one of them."""
    files = (
        agent_service_pb2,
        attachment_service_pb2,
        group_service_pb2,
        rule_service_pb2,
        ruleset_service_pb2,
        server_service_pb2,
        verdict_service_pb2,
    )
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    assert {f"{service.name}/{method.name}" for service in services for method in service.methods} == called


@pytest.mark.parametrize(
    ("expected", "spec"),
    [
        (("InvalidArgument", "rule.cidr", "10.0.0.0/33", "0 to 32"), rule(22, cidr="10.0.0.0/33")),
        (("InvalidArgument", "rule.ports", "65535"), rule(70000)),
        (("InvalidArgument", "rule.direction"), rule(22) | {"direction": "DIRECTION_UNSPECIFIED"}),
        # Two in one JSON never arrive: grpcurl sends the last, as a oneof has it.
        (("InvalidArgument", "rule.remote", "one of cidr, group_id, anywhere"), TCP),
        (("SIDEWAYS",), rule(22) | {"direction": "SIDEWAYS"}),
        (("no known field named source_port",), rule(22) | {"source_port": 1}),
        (("NotFound", "there is no group"), rule(22, group_id="01890000-0000-7000-8000-000000000000")),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_rule_that_is_none_is_told_with_the_field(controller: Client, expected: tuple[str, ...], spec: dict[str, Any]) -> None:
    group_id = controller.call("GroupService/ListGroups", project="m")["groups"][0]["id"]
    told = controller.refused("RuleService/CreateRule", project="m", group_id=group_id, rule=spec)
    for words in expected:
        assert words in told


def test_refusals_carry_the_details_of_their_kind(controller: Client, agent: Client) -> None:
    def details_of(client: Client, method: str, **values: Any) -> dict[str, Any]:
        """Return code and details of a refusal; these by the name of their type."""
        lines = client.refused(method, **values).splitlines()
        details = [json.loads(line.split("\t", 1)[1]) for line in lines if line.startswith("  ") and "\t{" in line]
        return {"code": lines[1].split()[-1]} | {each["@type"].rpartition(".")[2]: each for each in details}

    project = {"project": "d"}
    group_id = controller.call("GroupService/CreateGroup", **project, name="web")["group"]["id"]
    twin = controller.call("RuleService/CreateRule", **project, group_id=group_id, rule=rule(80))["rule"]["id"]
    controller.call("ServerService/CreateServer", **project, id="s1", addresses=["10.0.0.9"], group_ids=[group_id])

    told = details_of(controller, "RuleService/CreateRule", **project, group_id=group_id, rule=rule(80))
    assert (told["code"], told["ErrorInfo"]["reason"], told["ResourceInfo"]["resource_name"]) == (
        "AlreadyExists",
        "OBJECT_EXISTS",
        twin,
    )
    rows = [rule(8080), rule(22, cidr="10.0.0.0/33")]
    told = details_of(controller, "RuleService/BatchCreateRules", **project, group_id=group_id, rules=rows)
    (violation,) = told["BadRequest"]["field_violations"]
    assert (told["code"], violation["field"]) == ("InvalidArgument", "rules[1].cidr")
    told = details_of(controller, "GroupService/DeleteGroup", **project, id=group_id)
    (violation,) = told["PreconditionFailure"]["violations"]
    assert (told["code"], violation["subject"]) == ("FailedPrecondition", "server/s1")
    told = details_of(controller, "RuleService/DeleteRule", project="other", id=twin)
    assert (told["code"], told["ResourceInfo"]["resource_type"]) == ("NotFound", "rule")
    told = details_of(
        controller, "GroupService/UpdateGroup", **project, id=group_id, name="x", etag="r0", update_mask={"paths": ["name"]}
    )
    assert (told["code"], told["ErrorInfo"]["reason"]) == ("Aborted", "STALE_ETAG")
    told = details_of(agent, "VerdictService/Decide", packet=SYN | {"source": "203.0.113"})
    (violation,) = told["BadRequest"]["field_violations"]
    assert (told["code"], violation["field"]) == ("InvalidArgument", "packet.source")
    # Nothing of all that was done, the first row of the batch neither.
    assert len(controller.call("RuleService/ListRules", **project, group_id=group_id)["rules"]) == 3
