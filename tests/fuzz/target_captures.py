"""Capture files: frames are read up to the damage, and both engines judge them alike."""

from __future__ import annotations

from pathlib import Path

from scratch import scratch_folder

from secgroups.agent.settings import EngineSettings
from secgroups.lab.replay.capture import Capture, CaptureError
from secgroups.lab.replay.run import Replay
from secgroups.v1 import types_pb2 as types
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset

_FILE = scratch_folder() / "capture"
_CAPTURES = Path(__file__).parents[1] / "captures"
_SETTINGS = EngineSettings(flows_max=64, fragments_max=16)
# Enough of each recording for some packets.
SEEDS = [file.read_bytes()[:3_000] for file in sorted(_CAPTURES.glob("*.pcap*"))]
WORDS = [
    *(b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a", b"\x4d\x3c\x2b\x1a"),
    *(b"\x06\0\0\0", b"\x03\0\0\0", b"\x02\0\0\0", b"\x01\0\0\0", b"\x08\0", b"\x86\xdd", b"\x81\0", b"\x88\xa8", b"\x45\0"),
    *(b"\x60\0\0\0", b"\x09\0\x01\0\x7f", b"\x09\0\x01\0\xff", b"\x0e\0\x08\0" + b"\xff" * 8, b"\xff\xff\xff\xff", b"\0\0\0\x08"),
]


def _ruleset() -> EffectiveRuleset:
    """Return rules that allow some of what is in the recordings."""
    made = EffectiveRuleset(revision=1)
    made.server.project, made.server.id = "p", "s"
    made.server.addresses.extend(["10.0.0.9", "10.77.0.1", "2001:db8::9", "fd77::1"])
    made.server.group_ids.append("g")
    for number, (protocol, port) in enumerate([(types.PROTOCOL_TCP, 80), (types.PROTOCOL_UDP, 53), (types.PROTOCOL_ICMP, 0)]):
        rule = made.rules.add(group_name="g").rule
        rule.id, rule.group_id = f"r{number}", "g"
        rule.spec.direction, rule.spec.protocol = types.DIRECTION_INGRESS, protocol
        rule.spec.anywhere.SetInParent()
        if port:
            rule.spec.ports.first = rule.spec.ports.last = port
    return made


_RULESET = _ruleset()


def run(data: bytes) -> None:
    _FILE.write_bytes(data)
    compiled, reference = (_replayed(engine) for engine in ("compiled", "reference"))
    assert compiled == reference


def _replayed(engine: str) -> object:
    """Return what a replay says: of each packet, in sum, and of each flow; or why there is none."""
    try:
        with Capture(_FILE) as capture:
            replay = Replay(capture, _RULESET, settings=_SETTINGS, engine=engine, everything=True)
            verdicts = [(each.number, each.time_ns, each.verdict) for each in replay.judged()]
            return verdicts, replay.totals(), replay.problems, len(replay.flows)
    except CaptureError as error:
        return str(error)
