"""The captures, what is in them, and rules to judge them by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secgroups.agent.flow import Packet
from secgroups.lab.replay.capture import Capture, Frame
from secgroups.lab.replay.decode import open_frame, read_packet
from secgroups.v1 import types_pb2 as types
from secgroups.v1.ruleset_service_pb2 import EffectiveRule, EffectiveRuleset, ResolvedGroup

FOLDER = Path(__file__).resolve().parents[2] / "captures"
CAPTURES = sorted(path.name for path in FOLDER.iterdir())

SERVER4, CLIENT4 = "10.0.0.9", "198.51.100.7"
SERVER6, CLIENT6 = "2001:db8::9", "2001:db8:1::7"
SERVER_HARDWARE, CLIENT_HARDWARE = bytes.fromhex("020000000009"), bytes.fromhex("020000000007")

GROUP_ID = "0198c0de-0000-7000-8000-000000000001"
PEERS_ID = "0198c0de-0000-7000-8000-000000000002"
INGRESS, EGRESS = types.DIRECTION_INGRESS, types.DIRECTION_EGRESS


def frames(name: str) -> list[Frame]:
    """Return all frames of a committed capture."""
    with Capture(FOLDER / name) as capture:
        return list(capture.frames())


def packets(name: str) -> Iterator[Packet]:
    """Yield the IP packets of a committed capture."""
    for frame in frames(name):
        opened = open_frame(frame.link_type, frame.data)
        if opened.version:
            yield read_packet(opened)


def spec(
    protocol: str = "any", port: int = 0, *, remote: str = "any", direction: types.Direction.ValueType = INGRESS
) -> types.RuleSpec:
    """Return a rule: remote is ``any``, ``peers`` (the group with PEERS_ID), or a CIDR."""
    made = types.RuleSpec(direction=direction, protocol=types.Protocol.Value(f"PROTOCOL_{protocol.upper()}"))
    if port:
        made.ports.first = made.ports.last = port
    if remote == "any":
        made.anywhere.SetInParent()
    elif remote == "peers":
        made.group_id = PEERS_ID
    else:
        made.cidr = remote
    return made


def ruleset(
    *specs: types.RuleSpec, peers: tuple[str, ...] = (), addresses: tuple[str, ...] = (SERVER4, SERVER6)
) -> EffectiveRuleset:
    """Return what the controller says of a server ``p/web-1`` in one group, ``web``, with these rules, ids ending in 1, 2, ..."""
    rules = [
        EffectiveRule(
            rule=types.Rule(id=f"0198c0de-0000-7000-8000-0000000001{number:02}", project="p", group_id=GROUP_ID, spec=made),
            group_name="web",
        )
        for number, made in enumerate(specs, start=1)
    ]
    return EffectiveRuleset(
        server=types.Server(project="p", id="web-1", addresses=addresses, group_ids=[GROUP_ID]),
        rules=rules,
        remote_groups=[ResolvedGroup(group_id=PEERS_ID, name="peers", addresses=peers)],
        revision=7,
    )
