"""What real packets and changes cost with ``--enforce nftables``, between network namespaces on this machine. Needs root.

Packets: UDP packets of one established connection, sent one by one from a host through the router to another, in processor time of
the sending process, which over veth pairs is that of the whole path: without any rules, with a small stateful ruleset written by
hand (the yardstick) and with ours, 1,000 rules and 10,000 members; then packets of the server in that connection, and packets that
no rule allows. Each of the three has a router of its own, and they take many short turns, in an order that changes: the speed of a
shared machine moves by more than what is measured.

Changes: a member that joins or leaves a group of 10,000, and the first start with 1,000 servers, as the enforcer takes them. And,
with a controller, an agent and a caller as processes, the time from the call that deletes a rule to the first packet of an
established connection that passes no more; one is sent every half millisecond and a bit, so that they don't take a processor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, ip_address
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernel"))
sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

import grpc
import structlog
from agent_world import ACK, SYN_ACK, reply, tcp, udp
from frames import frame
from netns import World, inside, lacking, run
from rig import WEB, Rig, allow
from running_system import TIMEOUT_S, System

from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.kernel.settings import KernelSettings
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule, Ruleset, RulesetUpdate, ServerBinding
from secgroups.v1.rule_service_pb2 import DeleteRuleRequest
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub

WEB4, CLIENT = "10.0.0.9", "203.0.113.7"
TURNS = 60
PACKETS = 1_500
MEMBERS, RULES, SERVERS = 10_000, 1_000, 1_000
MEMBER_CHANGES = 20
REVOCATIONS = 40
PACKET_PAUSE_S = 0.0005
AGENT = "bench"

BY_HAND = """
table inet by_hand {
    set servers { type ipv4_addr; elements = { 10.0.0.9, 10.0.0.5 } }
    set ports { type inet_service; flags interval; elements = { 53, 1000-1010, 2000-2010 } }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        ip daddr @servers udp dport @ports accept
    }
}
"""

Row = dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    if why := lacking():
        sys.exit(f"error: {why}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    report = measure()
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))


def measure() -> dict[str, object]:
    """Return all figures by name."""
    world = World()
    try:
        with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder, inside(world.router):
            world.silence(True)
            rows = asyncio.run(packets(Path(folder))) | asyncio.run(changes()) | revocations(world, Path(folder))
    finally:
        world.close()
    conditions = f"{RULES} rules, {MEMBERS} members, {SERVERS} servers; {TURNS} turns of {PACKETS} packets"
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}, {run('nft', '--version').split()[1]}"
    return {**{name: round(value, 3) for name, value in rows.items()}, "conditions": conditions, "machine": machine}


def many_rules() -> list[Rule]:
    """A third each from anywhere, from networks and from a group; last the one that the measured packets need."""
    rules = [
        allow(
            f"{number:04}",
            protocol=6 if number % 2 else 17,
            ports=(1_000 + 20 * number, 1_010 + 20 * number),
            network=f"20.{number % 200}.0.0/16" if number % 3 == 0 else "",
            group="big" if number % 3 == 1 else "",
        )
        for number in range(RULES - 1)
    ]
    return [*rules, allow("9999", protocol=17, ports=53)]


def members(count: int) -> frozenset[IPv4Address]:
    return frozenset(IPv4Address(0x0A800000 + number) for number in range(count))


async def packets(folder: Path) -> Row:
    """Return nanoseconds a packet."""
    by_hand = folder / "by_hand.nft"
    by_hand.write_text(BY_HAND)
    with ExitStack() as ending:
        worlds = {}
        for name in ("bare", "handwritten", "ours"):
            worlds[name] = World()
            ending.callback(worlds[name].close)
            worlds[name].silence(True)
        worlds["handwritten"].nft("-f", str(by_hand))
        with inside(worlds["ours"].router):
            rig = Rig(worlds["ours"])
            try:
                await rig.change(groups={"web": many_rules()}, servers={WEB: ["web"]}, members={"big": map(str, members(MEMBERS))})
                await rig.stamped()
                taken = in_turns(worlds)
            finally:
                await rig.close()
    rows = {name: statistics.median(values) for name, values in taken.items()}

    def ratio(kind: str) -> float:
        pairs = zip(taken[f"ours{kind}_ns"], taken[f"handwritten{kind}_ns"], strict=True)
        return statistics.median(ours / yardstick for ours, yardstick in pairs)

    return rows | {f"ours_over_handwritten{kind}": ratio(kind) for kind in ("", "_from_server", "_denied")}


def in_turns(worlds: dict[str, World]) -> dict[str, list[float]]:
    """Return nanoseconds a packet of each turn, by router and kind of packet."""
    inbound, outbound, refused = udp(CLIENT, WEB4, 53), udp(WEB4, CLIENT, 40_000, source_port=53), udp(CLIENT, WEB4, 54)
    kinds = {"": ("client", inbound), "_from_server": ("web", outbound), "_denied": ("client", refused)}
    taken: dict[str, list[float]] = {}
    order = list(worlds)
    chance = random.Random(1)
    for _ in range(TURNS):
        for kind, (source, packet) in kinds.items():
            chance.shuffle(order)
            for name in order:
                # Establishes the connection, if that is not done.
                worlds[name].wires["client"].send(frame(inbound))
                worlds[name].wires["web"].send(frame(outbound))
                taken.setdefault(f"{name}{kind}_ns", []).append(flood(worlds[name], source, frame(packet)))
    return taken


def flood(world: World, source: str, packet: bytes) -> float:
    wire = world.wires[source]
    sent = wire.router_mac + wire.mac + b"\x08\x00" + packet
    begun = time.process_time_ns()
    for _ in range(PACKETS):
        wire.link.send(sent)
    taken = time.process_time_ns() - begun
    for each in world.wires.values():
        each.drain()
    return taken / PACKETS


async def changes() -> Row:
    """Return how long the enforcer takes, in milliseconds or seconds."""
    names = [f"g{number}" for number in range(5)]
    rules = many_rules()
    groups = {
        name: GroupRules(group_id=name, version=1, name=name, rules=tuple(rules[number::5])) for number, name in enumerate(names)
    }
    servers = {
        f"p/s{number}": ServerBinding(
            server=f"p/s{number}",
            version=1,
            addresses=frozenset({ip_address(0x0A000001 + number)}),
            group_ids=tuple(names[: 1 + number % 5]),
        )
        for number in range(SERVERS)
    }

    ruleset = Ruleset(
        revision=1,
        sets={"big": AddressSet(group_id="big", version=1, members=members(MEMBERS))},
        groups=groups,
        servers=servers,
    )
    one = frozenset({IPv4Address("10.255.0.1")})
    enforcer = KernelEnforcer(KernelSettings())
    joins, leaves = [], []
    try:
        begun = time.perf_counter()
        await enforcer.start(ruleset)
        started_s = time.perf_counter() - begun
        while not enforcer.stamps:
            await asyncio.sleep(0.01)
        for _ in range(MEMBER_CHANGES):
            # As the controller tells it: what comes and what goes.
            for taken, moved in ((joins, {"added": one}), (leaves, {"removed": one})):
                version = ruleset.revision + 1
                patch = AddressSetPatch(group_id="big", base_version=version - 1, version=version, **moved)
                ruleset = ruleset.apply(RulesetUpdate(revision=version, set_patches=(patch,)))
                taken.append(await _timed(enforcer, ruleset))
    finally:
        await enforcer.stop()
        await enforcer.clean_up()
    return {
        "apply_1000_servers_s": started_s,
        "member_update_ms": statistics.median(joins),
        "member_removal_ms": statistics.median(leaves),
    }


async def _timed(enforcer: KernelEnforcer, ruleset: Ruleset) -> float:
    begun = time.perf_counter()
    await enforcer.apply(ruleset)
    return (time.perf_counter() - begun) * 1e3


def revocations(world: World, folder: Path) -> Row:
    """Return milliseconds from the call that deletes a rule to the first packet of its connection that is refused."""
    os.environ["SECGROUPS_AGENT_ENFORCE"] = "nftables"
    system = System(folder, [AGENT])
    taken = []
    pinned = os.sched_getaffinity(0)
    try:
        # Packets stay on one processor; controller, agent and the caller may use both.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        system.start()
        with caller(system) as rules:
            os.sched_setaffinity(0, pinned)
            group = system.group("web")
            system.wait_in_force(system.server("web", WEB4, AGENT, group))
            for number in range(REVOCATIONS):
                rule = system.rule(group, 80)
                system.wait_in_force()
                opening = tcp(CLIENT, WEB4, 80, source_port=20_000 + number)
                assert world.passes("client", frame(opening), "web")
                assert world.passes("web", frame(reply(opening, tcp_flags=SYN_ACK)), "client")
                later = tcp(CLIENT, WEB4, 80, ACK, source_port=20_000 + number)
                taken.append(_first_refused_after(world, frame(later), partial(rules.send, rule)))
                assert rules.recv() == rule
    finally:
        system.stop()
        world.nft("flush", "ruleset")
    return {"revoke_to_drop_ms": statistics.median(taken), "revoke_to_drop_p99_ms": max(taken)}


def _first_refused_after(world: World, packet: bytes, delete: Callable[[], None]) -> float:
    begun = sent = time.perf_counter()
    delete()
    passed = 0
    while world.passes("client", packet, "web"):
        passed += 1
        time.sleep(PACKET_PAUSE_S)
        sent = time.perf_counter()
    assert passed, "not one packet passed before the rule was deleted"
    return (sent - begun) * 1e3


@contextmanager
def caller(system: System) -> Iterator[Connection]:
    """Have a process of its own delete the rules whose ids it is sent, over a connection that it keeps; it sends each back."""
    spawn = multiprocessing.get_context("spawn")
    rules, theirs = spawn.Pipe()
    process = spawn.Process(target=_delete_rules, args=(system.stack.controller.address, system.project, theirs))
    process.start()
    theirs.close()
    try:
        assert rules.poll(TIMEOUT_S), "the caller does not come up"
        rules.recv()
        yield rules
    finally:
        rules.close()
        process.join(TIMEOUT_S)


def _delete_rules(address: str, project: str, rules: Connection) -> None:
    with grpc.insecure_channel(address) as channel, suppress(EOFError):
        grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
        rules.send("")
        while rule := rules.recv():
            RuleServiceStub(channel).DeleteRule(DeleteRuleRequest(project=project, id=rule), timeout=TIMEOUT_S)
            rules.send(rule)


if __name__ == "__main__":
    main()
