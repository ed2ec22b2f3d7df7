"""A controller on a Unix socket, so that it comes back where it was, its agents, and short ways to ask them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc

from secgroups.lab.stack import Process, Stack
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import attachment_service_pb2 as attachments_pb
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import rule_service_pb2 as rules_pb
from secgroups.v1 import ruleset_service_pb2 as rulesets_pb
from secgroups.v1 import server_service_pb2 as servers_pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as verdicts_pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

TIMEOUT_S = 30.0
STRANGER = "198.51.100.7"


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition; AssertionError if it does not come within ``TIMEOUT_S``."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {TIMEOUT_S:.0f} s"
        time.sleep(0.02)


@contextmanager
def frozen(process: Process) -> Iterator[None]:
    """Have a process stand still, as a machine that hangs."""
    assert process.popen is not None
    process.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        thaw(process)


def thaw(process: Process) -> None:
    """Have a frozen process go on."""
    assert process.popen is not None
    process.popen.send_signal(signal.SIGCONT)


def is_running(process: Process) -> bool:
    return process.popen is not None and process.popen.poll() is None


def fill(disk: Path) -> Path:
    """Leave no byte of room on a disk; removing the file that is returned makes room again."""
    filling = disk / "filling"
    room = os.statvfs(disk)
    filling.write_bytes(bytes(room.f_bavail * room.f_frsize))
    assert not os.statvfs(disk).f_bavail
    return filling


class System:
    """Processes in ``folder``. Every call is made anew, as the controller comes and goes.

    Changes and questions are of ``project``; with a new one, tests that share the processes have names and addresses to themselves.
    """

    def __init__(self, folder: Path, agent_ids: Sequence[str]) -> None:
        self.folder = folder
        self.stack = Stack(folder, agent_ids, listen=f"unix:{folder}/api.sock")
        self.project = "p0"
        self._projects = count(1)
        self._source_ports = count(40_000)

    def start(self) -> None:
        self.stack.start()

    def stop(self) -> None:
        self.stack.stop()

    def renew_project(self) -> None:
        """Go on in a project that nobody has used."""
        self.project = f"p{next(self._projects)}"

    def ask(self, stub: Callable[[grpc.Channel], Any], method: str, request: Any, address: str = "") -> Any:
        with grpc.insecure_channel(address or self.stack.controller.address) as channel:
            return getattr(stub(channel), method)(request, timeout=TIMEOUT_S)

    # Changes; each answers the revision or the id.

    def group(self, name: str, *ports: int) -> str:
        """Make a group that allows TCP from anywhere to ``ports``; return its id."""
        made = self.ask(GroupServiceStub, "CreateGroup", groups_pb.CreateGroupRequest(project=self.project, name=name)).group
        for port in ports:
            self.rule(made.id, port)
        return str(made.id)

    def rule(self, group_id: str, port: int, remote_group_id: str = "") -> str:
        """Allow TCP to a port, from anywhere or from the members of a group; return the rule's id."""
        spec = _tcp_from_anywhere(port)
        if remote_group_id:
            spec.group_id = remote_group_id
        request = rules_pb.CreateRuleRequest(project=self.project, group_id=group_id, rule=spec)
        return str(self.ask(RuleServiceStub, "CreateRule", request).rule.id)

    def replace_rules(self, group_id: str, *ports: int) -> int:
        rules = [_tcp_from_anywhere(port) for port in ports]
        request = rules_pb.ReplaceRulesRequest(project=self.project, group_id=group_id, rules=rules)
        return int(self.ask(RuleServiceStub, "ReplaceRules", request).revision)

    def delete_rule(self, rule_id: str) -> int:
        request = rules_pb.DeleteRuleRequest(project=self.project, id=rule_id)
        return int(self.ask(RuleServiceStub, "DeleteRule", request).revision)

    def server(self, server_id: str, address: str, agent_id: str, *group_ids: str, more_addresses: Sequence[str] = ()) -> int:
        request = servers_pb.CreateServerRequest(
            project=self.project, id=server_id, addresses=[address, *more_addresses], agent_id=agent_id, group_ids=group_ids
        )
        return int(self.ask(ServerServiceStub, "CreateServer", request).revision)

    def move(self, server_id: str, agent_id: str) -> int:
        request = servers_pb.UpdateServerRequest(project=self.project, id=server_id, agent_id=agent_id)
        request.update_mask.paths.append("agent_id")
        return int(self.ask(ServerServiceStub, "UpdateServer", request).revision)

    def readdress(self, server_id: str, *addresses: str) -> int:
        request = servers_pb.UpdateServerRequest(project=self.project, id=server_id, addresses=addresses)
        request.update_mask.paths.append("addresses")
        return int(self.ask(ServerServiceStub, "UpdateServer", request).revision)

    def delete_server(self, server_id: str) -> int:
        request = servers_pb.DeleteServerRequest(project=self.project, id=server_id)
        return int(self.ask(ServerServiceStub, "DeleteServer", request).revision)

    def detach(self, server_id: str, group_id: str) -> int:
        request = attachments_pb.DetachGroupRequest(project=self.project, server_id=server_id, group_id=group_id)
        return int(self.ask(AttachmentServiceStub, "DetachGroup", request).revision)

    def attach(self, server_id: str, group_id: str) -> int:
        request = attachments_pb.AttachGroupRequest(project=self.project, server_id=server_id, group_id=group_id)
        return int(self.ask(AttachmentServiceStub, "AttachGroup", request).revision)

    # Questions.

    def revision(self) -> int:
        return int(self.ask(AgentServiceStub, "ListAgents", agents_pb.ListAgentsRequest()).revision)

    def agent(self, agent_id: str) -> agents_pb.Agent:
        found = self.ask(AgentServiceStub, "GetAgent", agents_pb.GetAgentRequest(id=agent_id)).agent
        assert isinstance(found, agents_pb.Agent)
        return found

    def agent_is_in_sync(self, agent_id: str) -> bool:
        """Whether an agent is connected and has all in force that concerns it."""
        return any(each.id == agent_id and each.connected and not each.pending_revisions for each in self.agents())

    def agents(self) -> list[agents_pb.Agent]:
        return list(self.ask(AgentServiceStub, "ListAgents", agents_pb.ListAgentsRequest()).agents)

    def stats(self, agent_id: str) -> verdicts_pb.GetStatsResponse:
        """Return what an agent says of itself."""
        answer = self.ask(VerdictServiceStub, "GetStats", verdicts_pb.GetStatsRequest(), self.stack.agents[agent_id].address)
        assert isinstance(answer, verdicts_pb.GetStatsResponse)
        return answer

    def wait_in_force(self, revision: int = 0, timeout_s: float = TIMEOUT_S) -> rulesets_pb.WaitForRevisionResponse:
        request = rulesets_pb.WaitForRevisionRequest(revision=revision or self.revision())
        request.timeout.FromNanoseconds(round(timeout_s * 1e9))
        answer = self.ask(RulesetServiceStub, "WaitForRevision", request)
        assert isinstance(answer, rulesets_pb.WaitForRevisionResponse)
        return answer

    def decide(self, agent_id: str, server_id: str, address: str, port: int, source_port: int = 0, flags: str = "SYN") -> str:
        """Return the reason of the verdict for a TCP packet from ``STRANGER``, of a new connection unless a port is given."""
        source_port = source_port or next(self._source_ports)
        packet = verdicts_pb.Packet(
            server=f"{self.project}/{server_id}",
            direction=types.DIRECTION_INGRESS,
            source=STRANGER,
            destination=address,
            protocol=types.PROTOCOL_TCP,
            source_port=source_port,
            destination_port=port,
            tcp_flags=[verdicts_pb.TcpFlag.Value(f"TCP_FLAG_{flag}") for flag in flags.split(",")],
        )
        if flags == "SYN,ACK":
            packet.direction = types.DIRECTION_EGRESS
            packet.source, packet.destination = packet.destination, packet.source
            packet.source_port, packet.destination_port = packet.destination_port, packet.source_port
        answer = self.ask(
            VerdictServiceStub, "Decide", verdicts_pb.DecideRequest(packet=packet), self.stack.agents[agent_id].address
        )
        return types.Reason.Name(answer.reason).removeprefix("REASON_")

    def cached(self, agent_id: str, text: str) -> bool:
        """Whether the cache on disk holds ``text``, and so all that came with it."""
        file = self.folder / agent_id / "ruleset.cache"
        return file.exists() and text.encode() in file.read_bytes()

    def log(self, name: str) -> list[dict[str, Any]]:
        """Return the events that a process has logged."""
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, name: str, event: str) -> list[dict[str, Any]]:
        return [each for each in self.log(name) if each["event"] == event]


def _tcp_from_anywhere(port: int) -> types.RuleSpec:
    return types.RuleSpec(
        direction=types.DIRECTION_INGRESS,
        protocol=types.PROTOCOL_TCP,
        ports=types.PortRange(first=port),
        anywhere=types.Anywhere(),
    )
