"""A controller killed again and again while it is written to, and what is there when it is started again."""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc

from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import rule_service_pb2 as rules_pb
from secgroups.v1 import ruleset_service_pb2 as rulesets_pb
from secgroups.v1 import server_service_pb2 as servers_pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

PROJECT = "survival"
AGENT_ID = "survivor"
WRITERS = 4
RULES_PER_CALL = 5
ALIVE_S = (0.02, 0.4)
# Of so many kills of the controller, one takes the agent with it.
AGENT_KILLED_EVERY = 5
SEED = 11
CALL_TIMEOUT_S = 10.0


@dataclass
class Acknowledged:
    """What clients were told is so."""

    groups: set[str] = field(default_factory=set)
    bulk: set[str] = field(default_factory=set)
    servers: set[str] = field(default_factory=set)
    revision: int = 0
    # Answers other than that the controller is gone: whoever gets one writes no more, and there is less load than there should be.
    refusals: Counter[str] = field(default_factory=Counter)


@dataclass
class Found:
    """What there is. ``rules`` counts those of each bulk call."""

    groups: set[str] = field(default_factory=set)
    rules: Counter[str] = field(default_factory=Counter)
    servers: set[str] = field(default_factory=set)
    revision: int = 0


@dataclass
class Damage:
    """What is not as it was acknowledged."""

    lost: int = 0
    half_changes: int = 0
    went_back: int = 0

    def note(self, told: Acknowledged, found: Found) -> None:
        """Add what differs."""
        self.lost += len(told.groups - found.groups) + len(told.bulk - found.rules.keys()) + len(told.servers - found.servers)
        self.half_changes += sum(held not in (0, RULES_PER_CALL) for held in found.rules.values())
        self.went_back += found.revision < told.revision


class Writer(threading.Thread):
    """Writes until the controller is gone; notes each answer."""

    def __init__(self, address: str, name: str, number: int, told: Acknowledged, lock: threading.Lock) -> None:
        super().__init__(daemon=True)
        self._address, self._name, self._number, self._told, self._lock = address, name, number, told, lock

    def run(self) -> None:
        with grpc.insecure_channel(self._address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            try:
                self._write(GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel))
            except grpc.RpcError as error:
                code = error.code()  # type: ignore[attr-defined]
                if code is not grpc.StatusCode.UNAVAILABLE:
                    with self._lock:
                        self._told.refusals[code.name] += 1

    def _write(self, groups: GroupServiceStub, rules: RuleServiceStub, servers: ServerServiceStub) -> None:
        for turn in count():
            unit = f"{self._name}-{self._number}-{turn}"
            group = groups.CreateGroup(groups_pb.CreateGroupRequest(project=PROJECT, name=unit), timeout=CALL_TIMEOUT_S)
            self._note(group.revision, self._told.groups, unit)
            specs = [_allow(port, unit) for port in range(1, RULES_PER_CALL + 1)]
            request = rules_pb.BatchCreateRulesRequest(project=PROJECT, group_id=group.group.id, rules=specs)
            self._note(rules.BatchCreateRules(request, timeout=CALL_TIMEOUT_S).revision, self._told.bulk, unit)
            server = servers_pb.CreateServerRequest(
                project=PROJECT, id=unit, addresses=[_address(unit)], agent_id=AGENT_ID, group_ids=[group.group.id]
            )
            self._note(servers.CreateServer(server, timeout=CALL_TIMEOUT_S).revision, self._told.servers, unit)

    def _note(self, revision: int, told: set[str], unit: str) -> None:
        with self._lock:
            told.add(unit)
            self._told.revision = max(self._told.revision, revision)


def _allow(port: int, unit: str) -> types.RuleSpec:
    return types.RuleSpec(
        direction=types.DIRECTION_INGRESS,
        protocol=types.PROTOCOL_TCP,
        ports=types.PortRange(first=port),
        anywhere=types.Anywhere(),
        description=unit,
    )


def _address(unit: str) -> str:
    """Return an address for each unit, of one and the same prefix."""
    first, second, third = (int(part) for part in unit.split("-"))
    number = (first * WRITERS + second) * 4_096 + third
    return f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}"


def kills(folder: Path, times: int) -> dict[str, Any]:
    """Kill, start again, compare, so many times; return what was found."""
    chance, told, lock, damage = random.Random(SEED), Acknowledged(), threading.Lock(), Damage()
    controller, agent = _processes(folder)
    start_s: list[float] = []
    try:
        controller.start()
        # It comes back where it was.
        controller.arguments[3] = agent.arguments[-1] = controller.address
        agent.start()
        for number in range(times):
            writers = [Writer(controller.address, str(number), each, told, lock) for each in range(WRITERS)]
            for writer in writers:
                writer.start()
            time.sleep(chance.uniform(*ALIVE_S))
            controller.kill()
            if number % AGENT_KILLED_EVERY == 0:
                agent.kill()
                agent.start()
            for writer in writers:
                writer.join()
            begun_s = time.perf_counter()
            controller.start()
            start_s.append(time.perf_counter() - begun_s)
            with grpc.insecure_channel(controller.address) as channel:
                damage.note(told, found := all_there_is(channel))
            print(f"{number + 1} of {times} kills, {len(told.groups)} groups: {damage}", file=sys.stderr, flush=True)
        with grpc.insecure_channel(controller.address) as channel:
            converged = _is_in_step(channel, found.revision)
    finally:
        agent.stop()
        controller.stop()
    return {
        "kills": times,
        "acknowledged": len(told.groups) + len(told.bulk) + len(told.servers),
        "acknowledged_lost": damage.lost,
        "half_changes": damage.half_changes,
        "revision_went_back": damage.went_back,
        "writers_refused": dict(told.refusals),
        "agent_converged": converged,
        "restart_s": statistics.median(start_s),
    }


def _processes(folder: Path) -> tuple[Process, Process]:
    """Return a controller on a new store and its agent, not started; the agent's last argument is the controller's address."""
    (folder / "state").mkdir(parents=True)
    limits = [word for limit in ("groups-per-project", "servers-per-project") for word in (f"--{limit}", "1000000")]
    controller = Process(
        name="controller",
        arguments=[
            *("secgroups.controller", "--plaintext", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
            *("--create", "--data-dir", str(folder / "data"), *limits, "--log-level", "warning"),
        ],
        ready_file=folder / "ready",
        log_file=folder / "log",
    )
    agent = Process(
        name="agent",
        arguments=[
            *("secgroups.agent", "--plaintext", "--agent-id", AGENT_ID, "--state-dir", str(folder / "state")),
            *("--listen", "127.0.0.1:0", "--reconnect-max-s", "1", "--controller", ""),
        ],
        ready_file=folder / "agent-ready",
        log_file=folder / "agent-log",
    )
    return controller, agent


def _is_in_step(channel: grpc.Channel, revision: int) -> bool:
    """Whether the agent comes to have a revision in force."""
    request = rulesets_pb.WaitForRevisionRequest(revision=revision)
    request.timeout.FromSeconds(60)
    in_force = RulesetServiceStub(channel).WaitForRevision(request, timeout=70).in_force
    agent = AgentServiceStub(channel).GetAgent(agents_pb.GetAgentRequest(id=AGENT_ID), timeout=CALL_TIMEOUT_S).agent
    return bool(in_force and agent.applied_revision == revision)


def all_there_is(channel: grpc.Channel) -> Found:
    """Return all that there is."""
    found = Found()
    stubs = GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel)
    for call, request in (
        (stubs[0].ListGroups, groups_pb.ListGroupsRequest(project=PROJECT, page_size=1000)),
        (stubs[1].ListRules, rules_pb.ListRulesRequest(project=PROJECT, page_size=1000)),
        (stubs[2].ListServers, servers_pb.ListServersRequest(project=PROJECT, page_size=1000)),
    ):
        while True:
            page = call(request, timeout=CALL_TIMEOUT_S)
            found.groups |= {group.name for group in getattr(page, "groups", ())}
            found.rules.update(rule.spec.description for rule in getattr(page, "rules", ()) if "-" in rule.spec.description)
            found.servers |= {server.id for server in getattr(page, "servers", ())}
            found.revision = max(found.revision, page.revision)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found
