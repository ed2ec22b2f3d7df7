"""The controller killed while clients write: whoever got an answer finds it kept, and who got none may ask again."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from store_world import PROJECT, everything, folded

from secgroups.controller.state import State
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.lab.stack import Process
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import rule_service_pb2 as rules_pb
from secgroups.v1 import server_service_pb2 as servers_pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

ROUNDS = 4
CLIENTS = 4
WAIT_S = 30.0
RULES_PER_CALL = 5


@dataclass
class Site:
    """A controller that can be killed and started again, and what its clients know."""

    process: Process
    stop: threading.Event = field(default_factory=threading.Event)
    answered: list[tuple[Any, Any]] = field(default_factory=list)
    unanswered: list[Any] = field(default_factory=list)
    moved_on: threading.Condition = field(default_factory=threading.Condition)

    def client(self, name: str) -> None:
        """Make groups, rules and servers until there is no answer."""
        with grpc.insecure_channel(self.process.address) as channel:
            call, number, group_id = caller(channel), 0, ""
            while not self.stop.is_set():
                number += 1
                request = request_of(f"{name}-{number}", group_id)
                try:
                    answer = call(request)
                except grpc.RpcError:
                    with self.moved_on:
                        self.unanswered.append(request)
                        self.moved_on.notify()
                    return
                group_id = answer.group.id if isinstance(answer, groups_pb.CreateGroupResponse) else group_id
                with self.moved_on:
                    self.answered.append((request, answer))
                    self.moved_on.notify()


def caller(channel: grpc.Channel) -> Callable[[Any], Any]:
    """Return what sends a request to the method that takes it."""
    methods = {
        groups_pb.CreateGroupRequest: GroupServiceStub(channel).CreateGroup,
        rules_pb.BatchCreateRulesRequest: RuleServiceStub(channel).BatchCreateRules,
        servers_pb.CreateServerRequest: ServerServiceStub(channel).CreateServer,
    }
    return lambda request: methods[type(request)](request, timeout=WAIT_S)


def request_of(unit: str, group_id: str) -> Any:
    """Return a request whose id is its unit ROUND-CLIENT-NUMBER: a group, rules in it or a server attached to it."""
    round_number, client, number = map(int, unit.split("-"))
    common = {"project": PROJECT, "request_id": unit}
    turn = Random(unit).randrange(6)
    if not group_id or turn == 0:
        return groups_pb.CreateGroupRequest(name=unit, **common)
    if turn == 1:
        address = f"10.{round_number * CLIENTS + client}.{number >> 8}.{number & 255}"
        return servers_pb.CreateServerRequest(id=unit, addresses=[address], group_ids=[group_id], **common)
    first = number * RULES_PER_CALL
    specs = [
        types.RuleSpec(
            direction=types.DIRECTION_INGRESS,
            protocol=types.PROTOCOL_TCP,
            ports=types.PortRange(first=port, last=port),
            cidr="10.0.0.0/8",
            description=unit,
        )
        for port in range(first, first + RULES_PER_CALL)
    ]
    return rules_pb.BatchCreateRulesRequest(group_id=group_id, rules=specs, **common)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    flags = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--create"]
    # Rules pile up until the next group is made.
    limits = ["--rules-per-group", "100000", "--groups-per-project", "100000"]
    process = Process(
        name="controller",
        arguments=["secgroups.controller", *flags, *limits],
        ready_file=tmp_path / "ready",
        log_file=tmp_path / "log",
    )
    made = Site(process)
    yield made
    made.stop.set()
    process.kill()


def killed_while_clients_write(site: Site, name: str, answers: int) -> None:
    """Let clients write, kill the controller after so many answers, and wait until all of them have noticed."""
    site.process.start()
    goal = len(site.answered) + answers
    clients = [threading.Thread(target=site.client, args=(f"{name}-{number}",), daemon=True) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    with site.moved_on:
        assert site.moved_on.wait_for(lambda: len(site.answered) >= goal or site.unanswered, WAIT_S)
    assert not site.unanswered
    site.process.kill()
    for client in clients:
        client.join(WAIT_S)
        assert not client.is_alive()


def test_answers_are_kept_and_what_got_none_may_be_asked_again(site: Site, tmp_path: Path) -> None:
    chance = Random(7)
    revision = 0
    for round_number in range(ROUNDS):
        killed_while_clients_write(site, str(round_number), chance.randint(1, 120))
        site.process.start()
        with grpc.insecure_channel(site.process.address) as channel:
            check_is_kept(channel, site.answered)
            now = GroupServiceStub(channel).ListGroups(groups_pb.ListGroupsRequest(project=PROJECT), timeout=WAIT_S).revision
            assert now >= max([revision, *(answer.revision for _, answer in site.answered)])
            # Done or not: after asking again it is done, and done once.
            for request in site.unanswered:
                answer = caller(channel)(request)
                assert caller(channel)(request) == answer
                site.answered.append((request, answer))
            site.unanswered.clear()
            revision = max(answer.revision for _, answer in site.answered)
        site.process.kill()
    check_file(tmp_path / "data" / "secgroups.db", site.answered)


def check_is_kept(channel: grpc.Channel, answered: list[tuple[Any, Any]]) -> None:
    groups, rules, servers = GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel)
    for _, answer in answered[-100:]:
        match answer:
            case groups_pb.CreateGroupResponse():
                found = groups.GetGroup(groups_pb.GetGroupRequest(project=PROJECT, id=answer.group.id), timeout=WAIT_S).group
                assert found.name == answer.group.name
            case rules_pb.BatchCreateRulesResponse():
                for rule in answer.rules:
                    request = rules_pb.GetRuleRequest(project=PROJECT, id=rule.id)
                    assert rules.GetRule(request, timeout=WAIT_S).rule == rule
            case servers_pb.CreateServerResponse():
                request = servers_pb.GetServerRequest(project=PROJECT, id=answer.server.id)
                assert servers.GetServer(request, timeout=WAIT_S).server == answer.server


def check_file(path: Path, answered: list[tuple[Any, Any]]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(SqliteStore(path)) as store:
        state = State(store.load())
        assert everything(folded(store)) == everything(state)
        # One revision for each answer, and none for anything else.
        assert store.revision == len({answer.revision for _, answer in answered}) == len(answered)
        units: dict[str, int] = {}
        for rule in state.rules(PROJECT):
            units[rule.spec.description] = units.get(rule.spec.description, 0) + bool(rule.spec.description)
        assert {units[unit] for unit in units if unit} == {RULES_PER_CALL}
        assert {request.request_id for request, _ in answered if request.DESCRIPTOR.name.startswith("Batch")} == set(units) - {""}
