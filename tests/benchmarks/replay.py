"""What a replay costs: packets per second of reading a capture into records, of judging these, and of the whole summary.

The capture is made of the committed ones, repeated: each repetition of one has a client address and client ports of its own, and
begins a little later. It is a pcap file of a million packets in short flows; checksums are left as they were. What is paid
for is told by the clock and, under "cpu", by the processor time of this process: nothing here waits, so where others want the same
cores the second is what the work costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

import dpkt

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import ICMPV6
from secgroups.agent.records import VERDICT_BYTES
from secgroups.agent.settings import EngineSettings
from secgroups.lab.effective import server_addresses, server_key, snapshot_of
from secgroups.lab.replay.capture import Capture, Frame
from secgroups.lab.replay.packing import Batch, Packer
from secgroups.lab.replay.placement import Placement, find_own_hardware
from secgroups.lab.replay.report import write_csv
from secgroups.lab.replay.run import Replay
from secgroups.v1 import types_pb2 as types
from secgroups.v1.ruleset_service_pb2 import EffectiveRule, EffectiveRuleset

RUNS = 5
PACKETS = 1_000_000
RULES = 1_000
RULES_PER_GROUP = 200
# Conversations begin so far apart; the live flows then stay well below what one server may hold.
APART_NS = 3_000_000
SEED = 7

CAPTURES = Path(__file__).parents[1] / "captures"
# How often each of the captures is taken.
MIX = {"http_tcp": 60, "ipv6_http": 20, "dns_udp": 12, "ping": 4, "ping6": 2, "fragments": 1, "icmp_unreachable": 1}
SERVER4, SERVER6 = "10.0.0.9", "2001:db8::9"
CLIENT4, CLIENT6 = IPv4Address("198.51.100.7").packed, IPv6Address("2001:db8:1::7").packed
CLIENTS4, CLIENTS6 = int(IPv4Address("198.18.0.0")), int(IPv6Address("2001:db8:2::"))
ADDRESSES = 20_000
# The first of the ICMPv6 messages about addresses.
LISTENER_QUERY = 130
FIRST_PORT, LAST_PORT = 40_000, 40_999

Measured = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Seconds by the clock, and of processor time."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        report = measure(Path(folder) / "large.pcap", say=(lambda text: None) if options.json else print)
    print(json.dumps(report) if options.json else shown(report))


def measure(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return medians over all runs, with the least and the most of each figure."""
    write_capture(path)
    rules = ruleset()
    runs: list[Measured] = []
    cpu_runs: list[Measured] = []
    for number in range(1, RUNS + 1):
        run, cpu_run, totals = run_once(path, rules)
        runs.append(run)
        cpu_runs.append(cpu_run)
        say(f"run {number}: " + ", ".join(f"{name} {value:,.0f}" for name, value in run.items()))
    return {
        "packets": totals["packets"],
        **medians(runs),
        "range": ranges(runs),
        "cpu": medians(cpu_runs),
        "cpu_range": ranges(cpu_runs),
        "conditions": conditions(path, totals),
    }


def medians(runs: list[Measured]) -> dict[str, int]:
    """Return the median of each figure."""
    return {name: round(statistics.median(run[name] for run in runs)) for name in runs[0]}


def ranges(runs: list[Measured]) -> dict[str, list[int]]:
    """Return the least and the most of each figure."""
    return {name: [round(fewest(run[name] for run in runs)) for fewest in (min, max)] for name in runs[0]}


def run_once(path: Path, rules: EffectiveRuleset) -> tuple[Measured, Measured, dict[str, Any]]:
    """Return packets per second of each part, by the clock and by processor time, and the sums of the replay."""
    packets, parsing, deciding = stages(path, rules)
    totals, whole = timed(lambda: summed_up(path, rules))
    if totals["packets"] != packets:
        raise SystemExit(f"{totals['packets']} packets were judged, not {packets}")
    listed, listing = timed(lambda: sum(1 for _ in listed_packets(path, rules)))
    _, reading = timed(lambda: read_by_dpkt(path))
    parts = {
        "decide_packets_per_s": (packets, deciding),
        "parse_packets_per_s": (packets, parsing),
        "total_packets_per_s": (packets, whole),
        "listing_packets_per_s": (listed, listing),
        "dpkt_reader_packets_per_s": (PACKETS, reading),
    }
    by_clock = {name: count / taken.wall_s for name, (count, taken) in parts.items()}
    return by_clock, {name: count / taken.cpu_s for name, (count, taken) in parts.items()}, totals


def timed(work: Callable[[], Any]) -> tuple[Any, Taken]:
    """Return the answer and what it took."""
    started_ns, cpu_started_ns = time.perf_counter_ns(), time.process_time_ns()
    answer = work()
    cpu_ns, wall_ns = time.process_time_ns() - cpu_started_ns, time.perf_counter_ns() - started_ns
    return answer, Taken(wall_s=wall_ns / 1e9, cpu_s=cpu_ns / 1e9)


def stages(path: Path, rules: EffectiveRuleset) -> tuple[int, Taken, Taken]:
    """Return the packets, and what reading them into records and judging those took, as they take turns in a replay.

    Reading includes what a replay does before the first verdict: a first reading for hardware addresses.
    """
    server, addresses = server_key(rules.server), server_addresses(rules.server)
    firewall = Firewall(EngineSettings(), now_ns=0)
    firewall.apply(snapshot_of(rules), 0)
    packets, deciding = 0, Taken(wall_s=0, cpu_s=0)

    def work() -> None:
        nonlocal packets, deciding
        with Capture(path) as capture:
            placement = Placement(addresses, find_own_hardware(capture.read(), addresses))
            packer = Packer(placement, server, addresses, firewall.server_handle(server), everything=False)
            for batch in packer.batches(capture):
                _, taken = timed(lambda batch=batch: decide(firewall, batch))
                deciding = Taken(wall_s=deciding.wall_s + taken.wall_s, cpu_s=deciding.cpu_s + taken.cpu_s)
                packets += len(batch.lanes)

    _, both = timed(work)
    return packets, Taken(wall_s=both.wall_s - deciding.wall_s, cpu_s=both.cpu_s - deciding.cpu_s), deciding


def decide(firewall: Firewall, batch: Batch) -> None:
    """Judge records that are there."""
    verdicts = bytearray(len(batch.lanes) * VERDICT_BYTES)
    firewall.decide_many(batch.records, batch.times[0], verdicts, batch.quotes, batch.times)


def summed_up(path: Path, rules: EffectiveRuleset) -> dict[str, Any]:
    """Do what ``sgctl replay --summary`` does before it prints."""
    with Capture(path) as capture:
        replay = Replay(capture, rules)
        replay.run()
        return replay.totals()


def listed_packets(path: Path, rules: EffectiveRuleset) -> Iterator[str]:
    """Yield what ``sgctl replay -o csv`` prints for the packets of a twentieth of the capture."""
    cut = path.with_suffix(".cut")
    with path.open("rb") as file:
        cut.write_bytes(file.read(path.stat().st_size // 20))
    with Capture(cut) as capture:
        yield from write_csv(Replay(capture, rules), summary=False)


def read_by_dpkt(path: Path) -> None:
    """Read the file by dpkt and do nothing with it: the yardstick."""
    with path.open("rb") as file:
        for _ in dpkt.pcap.Reader(file):
            pass


def write_capture(path: Path) -> None:
    """Write a pcap file of ``PACKETS`` packets, in the order of their times."""
    chosen = random.Random(SEED)
    recorded = {name: frames_of(CAPTURES / f"{name}.pcap") for name in MIX}
    waiting: list[tuple[int, bytes]] = []
    written, begins_ns = 0, 1_700_000_000 * 10**9
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, dpkt.pcap.DLT_EN10MB))
        while written < PACKETS:
            frames = recorded[chosen.choices(list(MIX), MIX.values())[0]]
            waiting += conversation(frames, begins_ns, chosen.randrange(ADDRESSES), chosen.randrange(FIRST_PORT))
            begins_ns += APART_NS
            due = sorted((each for each in waiting if each[0] < begins_ns), key=lambda each: each[0])[: PACKETS - written]
            waiting = [each for each in waiting if each[0] >= begins_ns]
            written += len(due)
            for time_ns, data in due:
                file.write(struct.pack("<IIII", *divmod(time_ns, 10**9), len(data), len(data)) + data)


def frames_of(path: Path) -> list[Frame]:
    """Return the frames of a capture that are of the conversation: no ARP, and none of what ICMPv6 has in its place."""
    with Capture(path) as capture:
        frames = list(capture.frames())
    return [frame for frame in frames if is_of_conversation(frame.data)]


def is_of_conversation(data: bytes) -> bool:
    """Whether an Ethernet frame carries IP, but not what hosts and routers tell each other about addresses."""
    if data[12:14] == b"\x86\xdd":
        return data[20] != 0 and (data[20] != ICMPV6 or data[54] < LISTENER_QUERY)
    return data[12:14] == b"\x08\x00"


def conversation(frames: list[Frame], begins_ns: int, client: int, shift: int) -> Iterator[tuple[int, bytes]]:
    """Yield time and data of each frame, as if another client had been there at another time, its ports moved by ``shift``."""
    clients = {CLIENT4: IPv4Address(CLIENTS4 + client).packed, CLIENT6: IPv6Address(CLIENTS6 + client).packed}
    for frame in frames:
        data = frame.data
        for old, new in clients.items():
            data = data.replace(old, new)
        for at in (34, 36) if data[12:14] == b"\x08\x00" else (54, 56):
            port = int.from_bytes(data[at : at + 2])
            if FIRST_PORT <= port <= LAST_PORT:
                data = data[:at] + (port - shift).to_bytes(2) + data[at + 2 :]
        yield begins_ns + (frame.time_ns or 0) - (frames[0].time_ns or 0), data


def ruleset() -> EffectiveRuleset:
    """Return ``RULES`` rules: web, DNS and ping, everything out, the rest for networks and ports that nobody comes from."""
    specs = [spec("TCP", 80), spec("UDP", 53), spec("ICMP"), spec("ANY", direction=types.DIRECTION_EGRESS)]
    chosen = random.Random(SEED)
    while len(specs) < RULES:
        network = IPv4Network((chosen.getrandbits(24) << 8, chosen.randint(8, 24)), strict=False)
        specs.append(spec("TCP", chosen.randint(1024, 65_535), cidr=str(network)))
    groups = [f"group-{number}" for number in range(0, RULES, RULES_PER_GROUP)]
    rules = [
        EffectiveRule(rule=types.Rule(id=f"{number:036}", project="p", group_id=group, spec=made), group_name=group)
        for number, made in enumerate(specs)
        for group in [groups[number // RULES_PER_GROUP]]
    ]
    server = types.Server(project="p", id="web-1", addresses=[SERVER4, SERVER6], group_ids=groups)
    return EffectiveRuleset(server=server, rules=rules, revision=1)


def spec(
    protocol: str, port: int = 0, *, cidr: str = "", direction: types.Direction.ValueType = types.DIRECTION_INGRESS
) -> types.RuleSpec:
    """Return a rule, for everybody unless a network is given."""
    made = types.RuleSpec(direction=direction, protocol=types.Protocol.Value(f"PROTOCOL_{protocol}"))
    if port:
        made.ports.first = made.ports.last = port
    if cidr:
        made.cidr = cidr
    else:
        made.anywhere.SetInParent()
    return made


def conditions(path: Path, totals: dict[str, Any]) -> dict[str, Any]:
    """Return what the figures were measured with."""
    return {
        "runs": RUNS,
        "rules": RULES,
        "capture_bytes": path.stat().st_size,
        "mix": MIX,
        "flows_opened": totals["flows_opened"],
        "reasons": totals["reasons"],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "yardstick": "dpkt.pcap.Reader over the same file, frames thrown away",
    }


def shown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [f"{'packets':30} {report['packets']:>12,}"]
    for title, figures, spread in (("", report, report["range"]), (", cpu", report["cpu"], report["cpu_range"])):
        for name, (least, most) in spread.items():
            lines.append(f"{name + title:30} {figures[name]:>12,}   ({least:,} to {most:,})")
    lines += [f"{name:30} {value}" for name, value in report["conditions"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
