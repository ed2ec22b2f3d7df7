"""What a verdict costs on one core: established, new and denied packets, one call and one change, beside what memory can do.

All packets come in random order of flows from NumPy buffers in batches of 256 through Firewall.decide_many; state, counters and
time-outs are what they are in an agent. Yardsticks of the same run: a bare C program that reads random prefetched 64-byte entries
of a table of the same size, and a flow table as a Python dict.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import stream
from traffic import (
    ACK,
    BATCH,
    SECOND,
    SYN,
    Records,
    Site,
    decide,
    flagged,
    made_site,
    packets,
    random_rule,
    turned,
)

from secgroups.agent._engine import FLOW_BYTES
from secgroups.agent.flow import TCP, UDP
from secgroups.agent.records import RECORD_BYTES, VERDICT_BYTES
from secgroups.agent.ruleset import AddressSetPatch, GroupRules, RulesetUpdate

RUNS = 5
MEASURED = 1_000_000
SEED = 7
ESTABLISHED, NEW, NO_RULE = 2, 1, 24

# Source, server, ports, protocol and length of a record.
UNPACK = struct.Struct("<16s16xI2HB15xI").unpack_from

Spread = list[float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="leave out the 10 million flows and the stream")
    options = parser.parse_args()
    spreads, conditions = measure(quick=options.quick, say=(lambda _: None) if options.json else print)
    report: dict[str, Any] = {name: round(statistics.median(values), 4) for name, values in spreads.items()}
    report["bytes_per_flow"] = round(FLOW_BYTES, 1)
    report["spread"] = {name: [round(min(values), 4), round(max(values), 4)] for name, values in spreads.items()}
    report["conditions"] = conditions
    print(json.dumps(report) if options.json else shown(report))


def measure(*, quick: bool, say: Callable[[str], None]) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Return what each figure came to in each run, and the conditions."""
    spreads: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        limit = memory_limit(Path(folder))
        for name, flows in (("100k", 100_000), ("1m", 1_000_000), ("10m", 10_000_000)):
            if quick and flows > 1_000_000:
                continue
            say(f"established, {flows} flows")
            spreads |= established(name, flows, limit)
    say("established, UDP")
    spreads |= established_udp()
    say("one call a packet")
    spreads |= one_call()
    say("new and denied packets")
    spreads["new_flow_ns"] = new_flows()
    for name, rules in (("1k", 1_000), ("10k", 10_000)):
        spreads[f"denied_ns_{name}_rules"] = denied(rules)
    say("changes")
    spreads |= changes()
    if not quick:
        say("stream")
        spreads |= stream.measure(RUNS)
    return spreads, conditions()


def conditions() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "processor": processor(),
        "python": platform.python_version(),
        "batch": BATCH,
        "packets_per_run": MEASURED,
        "runs": RUNS,
        "rules": 1_000,
    }


def processor() -> str:
    """Return the processor's name as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def memory_limit(folder: Path) -> Callable[[int], float]:
    """Return what measures nanoseconds for a random 64-byte read in a table of so many entries."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("no C compiler found; install gcc")
    program = folder / "memory_limit"
    subprocess.run([compiler, "-O2", "-o", str(program), str(Path(__file__).with_suffix("").parent / "memory_limit.c")], check=True)

    def limit(entries: int) -> float:
        done = subprocess.run([str(program), str(entries), str(4 * MEASURED)], check=True, capture_output=True, text=True)
        return float(done.stdout.split()[0])

    return limit


def batches(records: Records) -> Iterator[tuple[memoryview, bytearray]]:
    """Yield batches of packets, each with room for its verdicts."""
    whole = memoryview(records).cast("B") if records.dtype == np.uint8 else memoryview(records.view(np.uint8)).cast("B")
    answers = bytearray(BATCH * VERDICT_BYTES)
    size = BATCH * records.dtype.itemsize
    for at in range(0, len(whole) // size * size, size):
        yield whole[at : at + size], answers


def timed(site: Site, records: Records, now_ns: int) -> float:
    """Return nanoseconds for one packet."""
    prepared = list(batches(records))
    decide_many = site.firewall.decide_many
    begun = time.perf_counter_ns()
    for asked, answers in prepared:
        decide_many(asked, now_ns, answers)
        now_ns += 1_000
    return (time.perf_counter_ns() - begun) / (len(prepared) * BATCH)


def opened(site: Site, flows: int, now_ns: int, protocol: int = TCP) -> Records:
    """Open so many flows and return their opening packets. Those of UDP go by TCP flags that nobody looks at."""
    syns = packets(site, flows, 443, SYN, SEED)
    syns["protocol"] = protocol
    for records in (syns, turned(syns, SYN | ACK), flagged(syns, ACK)):
        got = decide(site, records, now_ns)
        # Now and then two clients are the same.
        assert np.isin(got, (NEW, ESTABLISHED)).all()
    return syns


def established(name: str, flows: int, limit: Callable[[int], float]) -> dict[str, Spread]:
    """Measure packets of established connections in random order."""
    now_ns = 2 * SECOND
    site = made_site(1_000, 64 if flows <= 1_000_000 else 256, flows + flows // 16, SEED)
    syns = opened(site, flows, now_ns)
    chance = np.random.default_rng(SEED)
    found: Spread = []
    limits: Spread = []
    for _ in range(RUNS):
        data = flagged(syns[chance.integers(0, flows, max(MEASURED, 1))], ACK)
        found.append(timed(site, data, now_ns))
        limits.append(limit(flows))
        now_ns += SECOND
    assert (decide(site, data[:BATCH], now_ns) == ESTABLISHED).all()
    return {f"established_ns_{name}": found, f"memory_limit_ns_{name}": limits}


def established_udp() -> dict[str, Spread]:
    """Measure packets of 100,000 answered UDP flows in random order."""
    flows, now_ns = 100_000, 2 * SECOND
    site = made_site(1_000, 64, flows + flows // 16, SEED, protocol=UDP)
    first = opened(site, flows, now_ns, UDP)
    chance = np.random.default_rng(SEED)
    found: Spread = []
    for _ in range(RUNS):
        data = first[chance.integers(0, flows, MEASURED)]
        found.append(timed(site, data, now_ns))
        now_ns += SECOND
    assert (decide(site, data[:BATCH], now_ns) == ESTABLISHED).all()
    return {"established_udp_ns_100k": found}


def one_call() -> dict[str, Spread]:
    """Measure one ``decide`` a packet, 100,000 flows, beside the least that a flow table as a dict must do with the same record."""
    flows, now_ns = 100_000, 2 * SECOND
    site = made_site(1_000, 64, flows + flows // 16, SEED)
    data = flagged(opened(site, flows, now_ns), ACK)
    table = dict_table(data, now_ns)
    order = np.random.default_rng(SEED).integers(0, flows, 200_000)
    whole = data[order].tobytes()
    found: dict[str, Spread] = {"decide_call_ns": [], "dict_ns_100k": []}
    for _ in range(RUNS):
        for name, judge in (("decide_call_ns", site.firewall.decide), ("dict_ns_100k", dict_judge(table))):
            found[name].append(call_ns(judge, whole, now_ns))
    return found


def call_ns(judge: Callable[[bytes, int], object], whole: bytes, now_ns: int) -> float:
    """Return nanoseconds for one call, without the making of its argument."""
    begun = time.perf_counter_ns()
    for at in range(0, len(whole), RECORD_BYTES):
        judge(whole[at : at + RECORD_BYTES], now_ns)
    between = time.perf_counter_ns()
    for at in range(0, len(whole), RECORD_BYTES):
        whole[at : at + RECORD_BYTES]
    return (2 * between - begun - time.perf_counter_ns()) / (len(whole) // RECORD_BYTES)


DictTable = dict[tuple[object, ...], list[int]]


def dict_table(data: Records, now_ns: int) -> DictTable:
    """Return the flows of ``data`` in a dict."""
    table: DictTable = {}
    for at in range(len(data)):
        source, server, source_port, destination_port, protocol, _ = UNPACK(data[at].tobytes(), 0)
        table[server, protocol, source, source_port, destination_port] = [1, now_ns + SECOND, 0, 0]
    return table


def dict_judge(table: DictTable) -> Callable[[bytes, int], int]:
    """Return what looks a record up in ``table``, looks at the clock, counts and renews."""

    def judge(record: bytes, now_ns: int) -> int:
        source, server, source_port, destination_port, protocol, length = UNPACK(record, 0)
        flow = table.get((server, protocol, source, source_port, destination_port))
        if flow is None or flow[1] <= now_ns:
            return 0
        flow[1] = now_ns + 432_000 * SECOND
        flow[2] += 1
        flow[3] += length
        return flow[0]

    return judge


def new_flows() -> Spread:
    """Measure opening packets that a rule allows, into a table that fills up by half."""
    found: Spread = []
    for run in range(RUNS):
        site = made_site(1_000, 64, 2 * MEASURED, SEED)
        syns = packets(site, MEASURED, 443, SYN, SEED + run)
        found.append(timed(site, syns, 2 * SECOND))
        assert (decide(site, syns[:BATCH], 3 * SECOND) == ESTABLISHED).all()
    return found


def denied(rules: int) -> Spread:
    """Measure opening packets from anywhere that no rule allows."""
    site = made_site(rules, 64, 100_000, SEED)
    found: Spread = []
    for run in range(RUNS):
        asked = packets(site, MEASURED, 444, SYN, SEED + run)
        got = decide(site, asked[:10_000], 2 * SECOND)
        assert (got == NO_RULE).mean() > 0.9
        found.append(timed(site, asked, 2 * SECOND))
    return found


def changes() -> dict[str, Spread]:
    """Measure milliseconds until one rule more or less, or one member, of 10,000 is in force."""
    site = made_site(10_000, 64, 100_000, SEED)
    chance = random.Random(SEED)
    group = site.groups["g0003"]
    rules_ms: Spread = []
    members_ms: Spread = []
    version = 1
    joined = IPv4Address("10.200.0.1")
    for number in range(100):
        extra = random_rule(chance, f"r0003-x{number}")
        for made in ((*group.rules, extra), group.rules):
            update = RulesetUpdate(
                revision=number, groups=(GroupRules(group_id="g0003", version=number, name="g0003", rules=made),)
            )
            rules_ms.append(applied_ms(site, update))
        for added, removed in ((frozenset({joined}), frozenset()), (frozenset(), frozenset({joined}))):
            patch = AddressSetPatch(group_id="members", base_version=version, version=version + 1, added=added, removed=removed)
            version += 1
            members_ms.append(applied_ms(site, RulesetUpdate(revision=number, set_patches=(patch,))))
    worse = max(rules_ms, members_ms, key=statistics.median)
    return {"change_rule_ms": rules_ms, "change_member_ms": members_ms, "change_ms": worse}


def applied_ms(site: Site, update: RulesetUpdate) -> float:
    """Return milliseconds for an update to be in force."""
    begun = time.perf_counter_ns()
    site.firewall.apply(update, 2 * SECOND)
    return (time.perf_counter_ns() - begun) / 1e6


def shown(report: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [
        f"{name:24} {value:>10}   {report['spread'][name][0]} - {report['spread'][name][1]}"
        for name, value in report.items()
        if name in report["spread"]
    ]
    return "\n".join([*lines, f"{'bytes_per_flow':24} {report['bytes_per_flow']:>10}"])


if __name__ == "__main__":
    main()
