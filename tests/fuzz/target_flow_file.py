"""The flow table and its names that a restarted agent finds: refused in words, or gone on with, and then everything still works."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any

from agent_world import ACK, ANY_EGRESS, CLIENT, CLIENT6, DNS, FIRST, LATER, SECOND, SSH, WEB, icmp, reply, tcp, udp
from choices import Choices
from kept_world import FLOW_BYTES, FLOWS_AT, HEADER_BYTES, KeptWorld
from scratch import scratch_folder

from secgroups.agent.errors import ConfigError
from secgroups.agent.flow_messages import flow_message

CHANGES_MAX = 8
_FOLDER = scratch_folder()
_FILE = _FOLDER / "flows"
_CHECKSUM_AT = 144
_EPOCHS_BYTES = 64
_FLOWS = 4
_OPENINGS = (
    *(tcp(CLIENT, "10.0.0.9", 22), udp(CLIENT6, "2001:db8::9", 53), udp("10.0.0.5", CLIENT, 9), icmp("10.0.0.9", CLIENT, 8)),
)
_PARTS = [udp(CLIENT, "10.0.0.9", 0, fragment=LATER, fragment_id=number, source_port=0) for number in range(_FLOWS)]
# More than there is room for.
_NEW = [udp(CLIENT, "10.0.0.9", 53, source_port=5_000 + number) for number in range(70)]
_ASKED = udp("10.0.0.9", CLIENT, 53)
_NUMBERS = (0, 1, 2, 3, -1, (1 << 20) - 1, 1 << 20, (1 << 32) - 2, (1 << 32) - 1, 1 << 63, 1 << 64, 1 << 80)
_VALUES = (*_NUMBERS, "p/db", "", "r", "\x00", "\ud800", "f" * 32, "0" * 31, "zz" * 16, None, True, 1.5, [], {}, [[]])
WORDS = [b"\x00\xff\xff\xff\xff", b"\x02\x10\xff", b"\x03\x03\x01", b"\xff" * 8, b"\x01\0\0\0"]
SEEDS = [bytes([kind, *range(at, at + 40)]) for kind in range(4) for at in (1, 60, 120)]


class _Left:
    """What an agent left behind: the parts of its file that are not empty, its names, and what was in force."""

    def __init__(self) -> None:
        self.world = world = KeptWorld(_FILE, SSH, DNS, ANY_EGRESS, flows_max=64, shards=2)
        world.bind(WEB, "db")
        self.said = []
        for number in range(_FLOWS):
            for opening in _OPENINGS:
                opening = replace(opening, source_port=1_000 + number, icmp_id=number)
                world.advance(0.02)
                world.open_answered(opening)
                self.said.append(reply(opening, tcp_flags=ACK) if opening.protocol == 6 else reply(opening))
            world.decide(udp(CLIENT, "10.0.0.9", 53, fragment=FIRST, fragment_id=number, source_port=number + 1))
        self.held, self.now_ns, self.revision = world.down(), world.now_ns, world.revision
        content = _FILE.read_bytes()
        self.size = len(content)
        self.head, self.epochs, self.table = content[:HEADER_BYTES], content[HEADER_BYTES:][:_EPOCHS_BYTES], content[FLOWS_AT:]
        self.names = [json.loads(line[9:]) for line in world.names.read_bytes().splitlines()]


_LEFT = _Left()


def run(data: bytes) -> None:
    choices, world = Choices(data), _LEFT.world
    for file in _FOLDER.iterdir():
        file.unlink()
    _write(choices)
    world.now_ns, world.revision = _LEFT.now_ns, _LEFT.revision
    try:
        world.up(_LEFT.held, judged=choices.chance(2))
    except ConfigError as error:
        assert str(_FILE) in str(error)
        return
    try:
        _check(world)
    finally:
        world.down()


def _write(choices: Choices) -> None:
    """Write what was left, with changes in some part of it."""
    head, table, epochs, names = bytearray(_LEFT.head), bytearray(_LEFT.table), bytearray(_LEFT.epochs), list(_LEFT.names)
    part = choices.below(4)
    for _ in range(1 + choices.below(CHANGES_MAX)):
        match part:
            case 0:
                at = choices.below(_CHECKSUM_AT + 60)
                head[at : at + 1] = choices.take(1) or b"\0"
            case 1:
                _change(choices, table, FLOW_BYTES * _FLOWS * len(_OPENINGS))
            case 2:
                _change(choices, epochs, len(epochs))
            case _:
                _rename(choices, names)
    if not choices.chance(4):
        head[_CHECKSUM_AT : _CHECKSUM_AT + 4] = zlib.crc32(head[:_CHECKSUM_AT]).to_bytes(4, "little")
    with _FILE.open("wb") as file:
        for at, content in ((0, head), (HEADER_BYTES, epochs), (FLOWS_AT, table)):
            file.seek(at)
            file.write(content)
        file.truncate(_LEFT.size - choices.chance(16))
    _LEFT.world.names.write_bytes(b"".join(map(_line, names)) + (choices.rest() if choices.chance(8) else b""))


def _change(choices: Choices, content: bytearray, most: int) -> None:
    """Write other bytes somewhere, in either half."""
    at = choices.below(most) + choices.below(2) * len(content) // 2
    made = choices.pick((b"\xff" * 8, bytes(8), b"\x01\0\0\0", b"\xff\xff\xff\x7f", choices.take(4)))
    content[at : at + len(made)] = made[: max(0, len(content) - at)]


def _rename(choices: Choices, names: list[Any]) -> None:
    """Take a line away, have it twice, or have something else in it."""
    if not names:
        return
    at = choices.below(len(names))
    match choices.below(6):
        case 0:
            del names[at]
        case 1:
            names.append(names[at])
        case 2 | 3 if names[at] and isinstance(names[at], list):
            line = list(names[at])
            line[choices.below(len(line))] = choices.pick(_VALUES)
            if choices.chance(2):
                names[at] = line
            else:
                names.append(line)
        case 4:
            kind = choices.pick(("+s", "-s", "+e", "-e", "+r", "-r", "?"))
            names.append([kind, *(choices.pick(_VALUES) for _ in range(choices.below(5)))])
        case _:
            names[at] = choices.pick(_VALUES)


def _line(entry: Any) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _check(world: KeptWorld) -> None:
    """Look at all that there is, judge what belongs to it, let it become full and old."""
    assert world.table.check(world.now_ns) == []
    flows = list(world.firewall.live(world.now_ns))
    assert len(flows) == len(world.table) <= 64
    for flow in flows:
        flow_message(flow, world.now_ns)
    for packet in _LEFT.said:
        world.firewall.explain(packet, world.now_ns)
        world.firewall.decide(packet, world.now_ns)
    for packet in (*_PARTS, *_NEW):
        world.firewall.decide(packet, world.now_ns)
    assert world.table.check(world.now_ns) == []
    world.now_ns += 1_000_000 * SECOND
    assert not any(world.firewall.live(world.now_ns))
    assert world.firewall.decide(_ASKED, world.now_ns).reason.name == "NEW"
