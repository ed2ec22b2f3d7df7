"""Between the words of a rule and its message."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from secgroups.cli import pb
from secgroups.cli.drafts import ANYWHERE, NUMBER, Remote, RuleDraft

_NAMED = ("any", "tcp", "udp", "icmp")


def spec_of(draft: RuleDraft, group_id: Callable[[str], str]) -> pb.RuleSpec:
    """Return the message of ``draft``; ``group_id`` finds the id of a group by its name."""
    spec = pb.RuleSpec(
        direction=pb.Direction.Value(f"DIRECTION_{draft.direction.upper()}"),
        icmp_type=draft.icmp_type,
        icmp_code=draft.icmp_code,
        description=draft.description,
    )
    if draft.protocol in _NAMED:
        spec.protocol = pb.Protocol.Value(f"PROTOCOL_{draft.protocol.upper()}")
    else:
        spec.protocol = pb.PROTOCOL_NUMBER
        spec.protocol_number = 132 if draft.protocol == "sctp" else int(draft.protocol)
    if draft.ports is not None:
        spec.ports.first, spec.ports.last = draft.ports
    if draft.remote.kind == "any":
        spec.anywhere.SetInParent()
    elif draft.remote.kind == "cidr":
        spec.cidr = draft.remote.value
    else:
        spec.group_id = group_id(draft.remote.value)
    return spec


def draft_of(spec: pb.RuleSpec, names: Mapping[str, str]) -> RuleDraft:
    """Return the words of a rule that the controller answered; ``names`` has the names of groups by id."""
    return RuleDraft(
        direction="ingress" if spec.direction == pb.DIRECTION_INGRESS else "egress",
        protocol=protocol_of(spec),
        ports=(spec.ports.first, spec.ports.last or spec.ports.first) if spec.HasField("ports") else None,
        icmp_type=spec.icmp_type if spec.HasField("icmp_type") else None,
        icmp_code=spec.icmp_code if spec.HasField("icmp_code") else None,
        remote=_remote_of(spec, names),
        description=spec.description,
    )


def protocol_of(spec: pb.RuleSpec) -> str:
    """Return the canonical word of a rule's protocol."""
    if spec.protocol != pb.PROTOCOL_NUMBER:
        return pb.Protocol.Name(spec.protocol).removeprefix("PROTOCOL_").lower()
    return "sctp" if spec.protocol_number == 132 else str(spec.protocol_number)


def set_protocol(request: pb.ExplainFlowRequest | pb.ListFlowsRequest | pb.WatchVerdictsRequest, word: str) -> None:
    """Put a canonical protocol word into a question."""
    if NUMBER.fullmatch(word) or word == "sctp":
        request.protocol = pb.PROTOCOL_NUMBER
        request.protocol_number = 132 if word == "sctp" else int(word)
    else:
        request.protocol = pb.Protocol.Value(f"PROTOCOL_{word.upper()}")


def _remote_of(spec: pb.RuleSpec, names: Mapping[str, str]) -> Remote:
    if spec.HasField("group_id"):
        return Remote("group", names.get(spec.group_id, spec.group_id))
    return Remote("cidr", spec.cidr) if spec.HasField("cidr") else ANYWHERE
