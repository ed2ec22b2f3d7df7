"""Packed records and their quotes: both engines judge them alike, single and in batches."""

from __future__ import annotations

from agent_world import (
    ACK,
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    FIRST,
    INGRESS,
    LATER,
    PING,
    SSH,
    SYN_ACK,
    WEB,
    World,
    error_about,
    icmp,
    reply,
    rule,
    tcp,
    udp,
)
from choices import Choices

from secgroups.agent.records import RECORD_BYTES, VERDICT_BYTES, pack, unpack_verdict

BATCHES_MAX, RECORDS_MAX, QUOTES_MAX = 4, 16, 3
_HANDLE = slice(32, 36)
_RULES = (SSH, DNS, PING, ANY_EGRESS, rule("x-web", INGRESS, remote="group:web"))
_LOGIN = tcp(CLIENT, "10.0.0.9", 22)
_QUERY = udp(CLIENT6, "2001:db8::9", 53)
_PACKETS = (
    *(_LOGIN, reply(_LOGIN, tcp_flags=SYN_ACK), tcp(CLIENT, "10.0.0.9", 22, ACK), error_about(_LOGIN), _QUERY, reply(_QUERY)),
    *(icmp(CLIENT, "10.0.0.9", 8), error_about(reply(_QUERY)), udp("10.0.0.9", CLIENT, 67, source_port=68)),
    *(udp(CLIENT, "10.0.0.9", 53, fragment=FIRST, fragment_id=7), udp(CLIENT, "10.0.0.9", 0, fragment=LATER, fragment_id=7)),
    tcp("10.0.0.5", "10.0.0.9", 1),
)
# They name no server yet.
_PAIRS = [pack(packet, 0) for packet in _PACKETS]
_RECORDS, _QUOTES = [record for record, _ in _PAIRS], [quote for _, quote in _PAIRS if quote]
WORDS = [*_RECORDS, *_QUOTES, bytes(10) + b"\xff\xff\n\0\0\t", b"\x06\x04\x01\x02", b"\x11\x06\x02", b"\xff\xff\xff\xff"]
SEEDS = [
    *(bytes([0, 1, 2, *range(at, at + 8)]) for at in range(0, 64, 8)),
    *(bytes([255, *range(100)]), bytes([3, 7] * 60), bytes(range(200, 0, -1))),
]


def run(data: bytes) -> None:
    choices = Choices(data)
    worlds = [World(engine, *_RULES, flows_max=64, fragments_max=16) for engine in ("compiled", "reference")]
    for world in worlds:
        world.apply(groups=(world.group("web"),), sets=(world.members("web", "10.0.0.5"),), servers=(world.binding(WEB, "web"),))
    for _ in range(BATCHES_MAX):
        if choices.is_over:
            break
        _judge(worlds, choices)
    compiled, reference = worlds
    assert not compiled.firewall.flows.check(compiled.now_ns)
    assert compiled.flow_count() == reference.flow_count()


def _judge(worlds: list[World], choices: Choices) -> None:
    """Let time pass, and both engines judge some records."""
    passed_s = choices.pick((0.0, 0.001, 1.0, 31.0, 121.0, 500_000.0))
    quotes = b"".join(_spoiled(choices, choices.pick(_QUOTES)) for _ in range(choices.below(QUOTES_MAX)))
    records = [_spoiled(choices, choices.pick(_RECORDS)) for _ in range(choices.below(RECORDS_MAX))]
    servers = [choices.pick((DB, DB, DB, WEB, "p/nobody")) for _ in records]
    batched = choices.chance(2)
    told = []
    for world in worlds:
        world.advance(passed_s)
        handles = [world.firewall.server_handle(server).to_bytes(4, "little") for server in servers]
        named = [record[: _HANDLE.start] + handle + record[_HANDLE.stop :] for record, handle in zip(records, handles, strict=True)]
        told.append(_verdicts(world, [b"".join(named)] if batched else named, quotes))
    assert told[0] == told[1], (told, records, quotes)


def _spoiled(choices: Choices, entry: bytes) -> bytes:
    """Return a record or a quote in which some bytes are others."""
    spoiled = bytearray(entry)
    for _ in range(choices.below(4)):
        spoiled[choices.below(len(spoiled))] = choices.below(256)
    return bytes(spoiled)


def _verdicts(world: World, batches: list[bytes], quotes: bytes) -> list[object]:
    found: list[object] = []
    for batch in batches:
        verdicts = bytearray(len(batch) // RECORD_BYTES * VERDICT_BYTES)
        world.firewall.decide_many(batch, world.now_ns, verdicts, quotes)
        entries = [verdicts[at : at + VERDICT_BYTES] for at in range(0, len(verdicts), VERDICT_BYTES)]
        answers = [unpack_verdict(entry, world.firewall.rule_id) for entry in entries]
        found += [(answer.verdict, answer.step) for answer in answers]
    return found
