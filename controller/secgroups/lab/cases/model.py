"""What a case file says, as plain values: cases, steps and what they expect.

Numbers are kept as they are written even if no rule could have them; whether a value is allowed is the controller's to say. Names
are references: ``Ref(None, "web")`` is a name without a project.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

DEFAULT_PROJECT = "p"
DEFAULT_GROUP = "default"


class Protocol(Enum):
    """The protocols that have a word; any other is a number."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Ref:
    """A name of a group or server; ``project`` is None where it was not written."""

    project: str | None
    name: str

    def __str__(self) -> str:
        return self.name if self.project is None else f"{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class Name:
    """A group or server of one project."""

    project: str
    name: str

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServerEnd:
    """A server as an end of traffic. ``address`` None: the first one that suits."""

    server: Ref
    address: Address | None = None

    def __str__(self) -> str:
        return str(self.server) if self.address is None else f"{self.server} ({self.address})"


@dataclass(frozen=True, slots=True)
class AddressEnd:
    """An address that nobody guards."""

    address: Address

    def __str__(self) -> str:
        return str(self.address)


End = ServerEnd | AddressEnd


@dataclass(frozen=True, slots=True)
class AnyRemote:
    """Every address of both families."""


@dataclass(frozen=True, slots=True)
class CidrRemote:
    """A prefix or address as it is written."""

    text: str


@dataclass(frozen=True, slots=True)
class GroupRemote:
    """The members of a group; without a project it is one of the rule's own."""

    group: Ref


Remote = AnyRemote | CidrRemote | GroupRemote


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleText:
    """A rule as it is written. ``ports`` is first and last; ``alias`` is the name given with ``as``."""

    direction: str
    protocol: Protocol | int
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote: Remote = AnyRemote()
    description: str = ""
    alias: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the engine; None leaves its default."""

    essential_services: bool | None = None
    flows_max: int | None = None
    server_flows_max: int | None = None
    tcp_loose_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSetup:
    """A group to be made, or the default group to be changed.

    ``without_egress`` removes the two born egress rules; ``replace`` all born rules.
    """

    group: Ref
    rules: tuple[RuleText, ...] = ()
    without_egress: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """A server to be made. ``groups`` None: none named. Addresses are texts: what they are is the controller's to say."""

    server: Ref
    addresses: tuple[str, ...]
    groups: tuple[Ref, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow's opening packet and its answer. ``name`` is that of ``open``; 0 or None: not said."""

    source: End
    destination: End
    protocol: Protocol | int
    port: int | None = None
    source_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    at: Ref | None = None
    direction: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPacket:
    """One more packet of the flow ``flow``."""

    flow: str
    sender: End
    tcp_flags: tuple[str, ...] | None = None
    fragment: str | None = None
    ip_id: int | None = None
    at: Ref | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoosePacket:
    """A packet out of the blue. ``quotes`` names the flow that it is an ICMP error about."""

    source: End
    destination: End
    protocol: Protocol | int
    port: int | None = None
    source_port: int | None = None
    tcp_flags: tuple[str, ...] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    quotes: str | None = None
    fragment: str | None = None
    ip_id: int | None = None
    at: Ref | None = None
    direction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRule:
    group: Ref
    rule: RuleText


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRule:
    """Deletes the rule that ``alias`` names."""

    alias: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEqualRule:
    """Deletes the rule of the group that is equal in canonical form."""

    group: Ref
    rule: RuleText


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRules:
    group: Ref
    rules: tuple[RuleText, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    server: Ref
    group: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    server: Ref
    group: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class SetGroups:
    server: Ref
    groups: tuple[Ref, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    setup: ServerSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveServer:
    server: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAddresses:
    server: Ref
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddGroup:
    setup: GroupSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteGroup:
    group: Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameGroup:
    group: Ref
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unparsable:
    """A change whose value is none; it counts as refused with INVALID_ARGUMENT."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartAgent:
    warm: bool


@dataclass(frozen=True, slots=True)
class StopController:
    pass


@dataclass(frozen=True, slots=True)
class StartController:
    pass


Traffic = Flow | FlowPacket | LoosePacket
Change = (
    AddRule
    | DeleteRule
    | DeleteEqualRule
    | SetRules
    | Attach
    | Detach
    | SetGroups
    | AddServer
    | RemoveServer
    | SetAddresses
    | AddGroup
    | DeleteGroup
    | RenameGroup
    | Unparsable
)
Control = Advance | RestartAgent | StopController | StartController
Action = Traffic | Change | Control


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a step must come to; an empty field expects nothing. ``error`` empty: a change must succeed."""

    verdict: str = ""
    reason: str = ""
    rule: str = ""
    error: str = ""
    error_contains: str = ""
    error_names: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. ``number`` counts from 1; ``verb`` is the word in the file."""

    number: int
    line: int
    verb: str
    action: Action
    expected: Expectation
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: what is set up, then the steps in order."""

    file: str
    line: int
    name: str
    project: str = DEFAULT_PROJECT
    settings: Settings = Settings()
    groups: tuple[GroupSetup, ...] = ()
    servers: tuple[ServerSetup, ...] = ()
    steps: tuple[Step, ...] = ()
