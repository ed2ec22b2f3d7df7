"""What a case runs in: a controller to change and an engine to ask, however they are reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from secgroups.agent.flow import Address, Explanation, Packet, Verdict
from secgroups.v1.types_pb2 import Rule, RuleSpec


class RefusedError(Exception):
    """A change that was refused. ``code`` is the name of a gRPC status code; ``text`` the message with all details."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text

    def names(self, object_id: str) -> bool:
        """True if the id stands in the text, as a word of its own."""
        return re.search(rf"(?<![\w-]){re.escape(object_id)}(?![\w-])", self.text) is not None


class OutOfStepError(Exception):
    """After a change controller and engine do not hold the same; the message says in what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What is held: the revision, the controller's objects (without versions), and what the engine enforces."""

    revision: int
    objects: object
    enforced: object

    def difference(self, after: Holdings) -> str:
        """Return in words what is not the same."""
        if self.objects != after.objects:
            return "the stored objects changed"
        if self.revision != after.revision:
            return f"the revision went from {self.revision} to {after.revision}"
        return "what the engine holds changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuestion:
    """What the controller's ExplainFlow is asked. A server is empty where an end is an address alone."""

    project: str
    source_server: str
    source: Address
    destination_server: str
    destination: Address
    protocol: int
    port: int
    icmp_type: int
    icmp_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowAnswer:
    """What policy alone says, the rule by which the last end allows it, and its words."""

    allowed: bool
    rule_id: str
    text: str


class World(Protocol):
    """A fresh controller and engine. Every change raises RefusedError and is in force at the engine when it returns."""

    def find_group(self, project: str, name: str) -> str | None:
        """Return the id of a group by its name; the default group is there always."""

    def create_group(self, project: str, name: str) -> str:
        """Return the id of the new group."""

    def rename_group(self, project: str, group_id: str, name: str) -> None: ...

    def delete_group(self, project: str, group_id: str) -> None: ...

    def rules(self, project: str, group_id: str) -> list[Rule]:
        """Return the rules of a group."""

    def create_rule(self, project: str, group_id: str, spec: RuleSpec) -> str:
        """Return the id of the new rule."""

    def create_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        """Return the ids of the new rules, all made in one step."""

    def replace_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        """Return the ids of the group's rules in the order of ``specs``."""

    def delete_rule(self, project: str, rule_id: str) -> None: ...

    def create_server(self, project: str, server_id: str, addresses: Sequence[str], group_ids: Sequence[str]) -> None: ...

    def set_addresses(self, project: str, server_id: str, addresses: Sequence[str]) -> None: ...

    def delete_server(self, project: str, server_id: str) -> None: ...

    def attach(self, project: str, server_id: str, group_id: str) -> None: ...

    def detach(self, project: str, server_id: str, group_id: str) -> None: ...

    def set_groups(self, project: str, server_id: str, group_ids: Sequence[str]) -> None: ...

    def holdings(self) -> Holdings:
        """Return all that is held, to be compared with what was held before."""

    def judge(self, packet: Packet) -> tuple[Explanation, Verdict]:
        """Explain a packet, then decide it. ``packet.server`` is ``project/id`` as the case writes it."""

    def explain_flow(self, question: FlowQuestion) -> FlowAnswer | None:
        """Return what the controller says; None if it can't be asked now."""

    def advance(self, seconds: float) -> None:
        """Move the clock."""

    def restart_agent(self, *, warm: bool) -> None: ...

    def stop_controller(self) -> None: ...

    def start_controller(self) -> None: ...

    def close(self) -> None:
        """Leave nothing behind."""
