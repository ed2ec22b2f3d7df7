"""Every call of every service, made by everybody there is: who is let in, and what the others are told.

What each call needs is said here once more, by hand: a call that is not in this table, or not in the controller's, fails.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from trusted_site import Site, bearer, call

from secgroups.controller.server import SERVICES
from secgroups.controller.trust.principals import ACCESS
from secgroups.v1 import (
    agent_service_pb2,
    attachment_service_pb2,
    audit_service_pb2,
    group_service_pb2,
    limit_service_pb2,
    operator_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    trust_service_pb2,
)
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub

PROTOS = (
    agent_service_pb2,
    attachment_service_pb2,
    audit_service_pb2,
    group_service_pb2,
    limit_service_pb2,
    operator_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    trust_service_pb2,
)
METHODS = {
    f"{service.name}/{method.name}": method
    for proto in PROTOS
    for service in proto.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
READ = {
    "GroupService/GetGroup", "GroupService/ListGroups", "RuleService/GetRule", "RuleService/ListRules", "ServerService/GetServer",
    "ServerService/ListServers", "AttachmentService/ListAttachments", "RulesetService/GetEffectiveRuleset",
    "RulesetService/WatchEffectiveRuleset", "RulesetService/ExplainFlow", "AuditService/ListChanges",
    "AuditService/WatchChanges", "LimitService/GetLimits",
}  # fmt: skip
CHANGE = {
    "GroupService/CreateGroup", "GroupService/UpdateGroup", "GroupService/DeleteGroup", "RuleService/CreateRule",
    "RuleService/BatchCreateRules", "RuleService/UpdateRule", "RuleService/DeleteRule", "RuleService/ReplaceRules",
    "ServerService/CreateServer", "ServerService/UpdateServer", "ServerService/DeleteServer", "AttachmentService/AttachGroup",
    "AttachmentService/DetachGroup", "AttachmentService/SetServerGroups",
}  # fmt: skip
# They name no project.
READ_OF_NOBODY = {"RuleService/ListPresets", "RulesetService/WaitForRevision"}
OPERATE = {
    "AgentService/ListAgents", "AgentService/GetAgent", "LimitService/UpdateLimits", "LimitService/ListLimitOverrides",
    "OperatorService/Backup", "OperatorService/GetStatus",
    "TrustService/CreateToken", "TrustService/ListTokens", "TrustService/RevokeToken", "TrustService/RevokeAgent",
    "TrustService/EnrollAgent", "TrustService/IssueOperatorCertificate",
}  # fmt: skip
OWN = {"TrustService/WhoAmI"}
AGENT = {"AgentService/Subscribe"}

IN, UNKNOWN, DENIED, ELSEWHERE = "let in", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND: there is no project mine"
TOKENS = ("admin", "editor", "viewer", "editor of another", "viewer of another")
STRANGERS = ("nothing", "garbage", "another secret", "expired", "revoked", "basic")


@pytest.fixture(scope="module")
def tokens(site: Site) -> dict[str, str]:
    """The texts of tokens by who has them."""
    roles = trust_service_pb2
    revoked_id, revoked = site.token(roles.ROLE_ADMIN)
    site.trust.RevokeToken(trust_service_pb2.RevokeTokenRequest(id=revoked_id))
    _, expired = site.token(roles.ROLE_ADMIN, lifetime_s=1)
    known_id, _ = site.token(roles.ROLE_ADMIN)
    time.sleep(1.1)
    return {
        "admin": site.token(roles.ROLE_ADMIN)[1],
        "editor": site.token(roles.ROLE_EDITOR, "mine")[1],
        "viewer": site.token(roles.ROLE_VIEWER, "mine")[1],
        "editor of another": site.token(roles.ROLE_EDITOR, "theirs")[1],
        "viewer of another": site.token(roles.ROLE_VIEWER, "theirs")[1],
        "garbage": "x" * 70,
        "another secret": f"sgt_{known_id}_{'A' * 43}",
        "expired": expired,
        "revoked": revoked,
    }


@pytest.fixture(scope="module")
def channel(site: Site) -> Iterator[grpc.Channel]:
    with site.tls() as made:
        yield made


def expected(name: str, who: str) -> str:
    """Return what somebody with a token is to get."""
    role, _, elsewhere = who.partition(" of ")
    if name in AGENT or (name in OPERATE and role != "admin"):
        return DENIED
    if name in READ | CHANGE and elsewhere:
        return ELSEWHERE
    if name in CHANGE and role == "viewer":
        return DENIED
    return IN


def matches(want: str, got: str) -> bool:
    agrees = _agrees(want, got)
    if counted := os.environ.get("SECGROUPS_COUNT_CELLS"):
        # For scripts/bench survival, which tells how many there are.
        with Path(counted).open("a") as file:
            file.write("ok\n" if agrees else "leak\n")
    return agrees


def _agrees(want: str, got: str) -> bool:
    refused = any(got.startswith(code) for code in (UNKNOWN, DENIED, "INTERNAL", "UNKNOWN", "UNAVAILABLE", ELSEWHERE))
    return not refused if want is IN else got.startswith(want)


@pytest.fixture(autouse=True, scope="module")
def changes(site: Site) -> Iterator[None]:
    """Somebody who goes on changing what everybody asks about: a watch of changes answers when there is one."""
    stopped = threading.Event()

    def change() -> None:
        with site.stack.channel() as own:
            number = 0
            while not stopped.wait(0.05):
                request = group_service_pb2.CreateGroupRequest(project="mine", name=f"g{number % 300}")
                with suppress(grpc.RpcError):
                    GroupServiceStub(own).CreateGroup(request, timeout=5)
                number += 1

    thread = threading.Thread(target=change)
    thread.start()
    yield
    stopped.set()
    thread.join()


def test_the_tables_have_every_call_and_no_other() -> None:
    assert {f"/{proto.DESCRIPTOR.package}.{name}" for proto in PROTOS[:1] for name in METHODS} == ACCESS.keys()
    assert {service.full_name for proto in PROTOS for service in proto.DESCRIPTOR.services_by_name.values()} == set(SERVICES)
    tables = [READ, CHANGE, READ_OF_NOBODY, OPERATE, OWN, AGENT]
    assert set().union(*tables) == METHODS.keys()
    assert sum(map(len, tables)) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_who_has_a_token_gets_what_its_role_allows_in_its_project(channel: grpc.Channel, tokens: dict[str, str], name: str) -> None:
    got = {who: call(channel, METHODS[name], bearer(tokens[who]), project="mine") for who in TOKENS}
    wrong = {who: (expected(name, who), answer) for who, answer in got.items() if not matches(expected(name, who), answer)}
    assert not wrong


@pytest.mark.parametrize("name", METHODS)
def test_who_is_not_known_is_told_the_same_whatever_the_reason(
    site: Site, channel: grpc.Channel, tokens: dict[str, str], name: str
) -> None:
    told = set()
    for who in STRANGERS:
        metadata = () if who == "nothing" else bearer(tokens.get(who, ""))
        if who == "basic":
            metadata = (("authorization", f"Basic {tokens['admin']}"),)
        told.add(call(channel, METHODS[name], metadata, project="mine"))
    (answer,) = told
    assert all(matches(UNKNOWN, answer) for _ in STRANGERS)


def test_that_a_project_exists_shows_in_nothing(channel: grpc.Channel, tokens: dict[str, str]) -> None:
    admin, other = bearer(tokens["admin"]), bearer(tokens["viewer of another"])
    made = call(channel, METHODS["GroupService/CreateGroup"], admin, project="there", name="web")
    assert made == "OK"
    for name in sorted(READ | CHANGE):
        answers = {project: call(channel, METHODS[name], other, project=project) for project in ("there", "nowhere")}
        assert answers["there"].replace("there", "nowhere", 2) == answers["nowhere"].replace("there", "nowhere", 1), name


@pytest.mark.parametrize("name", sorted(METHODS.keys() - AGENT - OWN))
def test_an_agent_may_subscribe_and_nothing_else(site: Site, name: str) -> None:
    with site.enroll("agent-m") as channel:
        assert matches(DENIED, call(channel, METHODS[name], (), project="mine"))


def test_a_token_is_of_no_use_to_whoever_shows_a_certificate(site: Site, tokens: dict[str, str]) -> None:
    with site.enroll("agent-m") as channel:
        got = call(channel, METHODS["GroupService/ListGroups"], bearer(tokens["admin"]), project="mine")
        assert got.startswith(DENIED)


def test_where_agents_subscribe_nobody_comes_in_without_a_certificate(site: Site, tokens: dict[str, str]) -> None:
    with site.tls(site.controller.agent_address) as channel:
        got = call(channel, METHODS["GroupService/ListGroups"], bearer(tokens["admin"]), project="mine")
        assert got.startswith("UNAVAILABLE")


def test_channelz_is_for_admins_and_health_for_everybody(site: Site, tokens: dict[str, str]) -> None:
    from grpc_channelz.v1 import channelz_pb2
    from grpc_health.v1 import health_pb2

    servers = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].methods_by_name["GetServers"]
    check = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"]
    with site.tls(site.controller.admin_address) as channel:
        assert call(channel, servers, bearer(tokens["admin"])) == "OK"
        assert call(channel, servers, bearer(tokens["editor"])).startswith(DENIED)
        assert call(channel, servers, ()).startswith(UNKNOWN)
        assert call(channel, check, ()) == "OK"
        # One who is not known could hold a stream for ever, and so many of them that nobody else is let in.
        watch = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Watch"]
        assert call(channel, watch, ()).startswith(UNKNOWN)
        assert call(channel, watch, bearer(tokens["viewer"])) == "OK"
