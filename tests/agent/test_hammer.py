"""Threads ask without a pause while rules, members and bindings change: no packet is lost, and none of a revoked flow passes."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import cycle

import numpy as np
import pytest
from agent_world import ACK, CLIENT, INGRESS, SECOND, World, reply, rule, tcp

from secgroups.agent._engine import CHECKED
from secgroups.agent.flow import TCP, Packet, Reason
from secgroups.agent.records import pack, record_dtype, verdict_dtype
from secgroups.agent.ruleset import AddressSetPatch, RulesetUpdate

SERVERS = 8
FLOWS_PER_SERVER = 40
HAMMERED_S = 0.5 if CHECKED else 1.5
# A thread that waits for a lock with the interpreter's lock in its hand would wait for ever.
STUCK_S = 120

STEADY, SWUNG = rule("a-steady", INGRESS, TCP, 22), rule("b-swung", INGRESS, TCP, 80, "group:friends")
CHANGING, ALLOWED, REVOKED = "changing", "allowed", "revoked"


def address_of(number: int) -> str:
    return f"10.0.1.{number + 1}"


def opening(server: int, port: int, flow: int) -> Packet:
    return tcp(CLIENT, address_of(server), port, at=f"p/s{server}", direction=INGRESS, source_port=10_000 + flow)


def conversation(openings: list[Packet]) -> list[Packet]:
    """Return a segment of each direction of every connection."""
    return [each for first in openings for each in (replace(first, tcp_flags=ACK), reply(first, tcp_flags=ACK))]


@dataclass
class Hammered:
    """One firewall, threads that ask it, and what they saw. ``phase`` is a value of its own in every round."""

    world: World
    phase: tuple[str, int] = (CHANGING, 0)
    stops: bool = False
    asked: int = 0
    seen: set[tuple[str, int]] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def records(self, packets: list[Packet]) -> np.ndarray:
        handle = self.world.firewall.server_handle
        return np.frombuffer(b"".join(pack(each, handle(each.server))[0] for each in packets), record_dtype()).copy()

    def start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                while not self.stops:
                    work()
            except Exception as error:
                self.faults.append(repr(error))

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def wait_until_seen(self) -> None:
        """Return when a thread has asked a whole batch in the phase of now."""
        ends_s = time.monotonic() + STUCK_S
        while self.phase not in self.seen and not self.faults and time.monotonic() < ends_s:
            time.sleep(0.0005)

    def stop(self) -> None:
        self.stops = True
        for thread in self.threads:
            thread.join(STUCK_S)

    def batch(self, steady: np.ndarray, swung: np.ndarray) -> Callable[[], None]:
        """Return work that asks about connections that nothing may happen to, and those that are revoked and allowed in turn."""
        records = np.concatenate([steady, swung])
        verdicts = np.zeros(len(records), verdict_dtype())

        def work() -> None:
            before = self.phase
            self.world.firewall.decide_many(records, self.world.now_ns, verdicts)
            after = self.phase
            reasons = verdicts["reason"]
            self.asked += len(records)
            if not (reasons[: len(steady)] == Reason.ESTABLISHED).all():
                self.faults.append(f"steady connections in {before}: {np.unique(reasons[: len(steady)])}")
            # What happened while the rules changed may be either.
            if before == after and before[0] != CHANGING:
                self.seen.add(before)
                expected = Reason.ESTABLISHED if before[0] == ALLOWED else Reason.REVOKED
                if not (reasons[len(steady) :] == expected).all():
                    self.faults.append(f"swung connections in {before}: {np.unique(reasons[len(steady) :])}")

        return work

    def singly(self, steady: list[Packet]) -> Callable[[], None]:
        """Return work that asks packet by packet, has verdicts explained and flows listed."""
        packets = cycle(steady)
        firewall, now_ns = self.world.firewall, self.world.now_ns

        def work() -> None:
            asked = next(packets)
            reasons = [firewall.decide(asked, now_ns).reason, firewall.explain(asked, now_ns).verdict.reason]
            if reasons != [Reason.ESTABLISHED] * 2:
                self.faults.append(f"{asked}: {reasons}")
            if sum(1 for _ in firewall.live(now_ns)) != 2 * SERVERS * FLOWS_PER_SERVER:
                self.faults.append("not every flow is there")

        return work


def hammered(shards: int) -> Hammered:
    world = World("compiled", shards=shards, flows_max=65_536)
    world.now_ns = 5_000 * SECOND
    world.apply(
        snapshot=True,
        sets=(world.members("friends", CLIENT, "192.0.2.9"),),
        groups=(world.group("steady", STEADY), world.group("swung", SWUNG)),
        servers=tuple(world.binding(f"p/s{at}", "steady", "swung", addresses=(address_of(at),)) for at in range(SERVERS)),
    )
    return Hammered(world=world)


def revocations(world: World) -> list[tuple[Callable[[], None], Callable[[], None]]]:
    """Return ways to take SWUNG away from every server, each with the way back."""

    def patched(**changes: frozenset) -> Callable[[], None]:
        def apply() -> None:
            held = world.firewall.ruleset.sets["friends"].version
            patch = AddressSetPatch(group_id="friends", base_version=held, version=held + 1, **changes)
            world.revision += 1
            world.firewall.apply(RulesetUpdate(revision=world.revision, set_patches=(patch,)), world.now_ns)

        return apply

    def bound(*group_ids: str) -> Callable[[], None]:
        return lambda: world.apply(
            servers=tuple(world.binding(f"p/s{at}", *group_ids, addresses=(address_of(at),)) for at in range(SERVERS))
        )

    friend = frozenset({ip_address(CLIENT)})
    return [
        (lambda: world.set_rules(group_id="swung"), lambda: world.set_rules(SWUNG, group_id="swung")),
        (patched(removed=friend), patched(added=friend)),
        (bound("steady"), bound("steady", "swung")),
        (lambda: world.apply(removed_sets=("friends",)), lambda: world.apply(sets=(world.members("friends", CLIENT),))),
    ]


def _keep_changing(hammer: Hammered, watched: np.ndarray) -> int:
    """Revoke and allow in turn while the threads ask; return how often."""
    verdicts = np.zeros(len(watched), verdict_dtype())
    ends_s = time.monotonic() + HAMMERED_S
    for rounds, (revoke, allow) in enumerate(cycle(revocations(hammer.world))):
        for change, phase, reason in ((revoke, REVOKED, Reason.REVOKED), (allow, ALLOWED, Reason.ESTABLISHED)):
            hammer.phase = (CHANGING, rounds)
            change()
            # From here on, whoever asks.
            hammer.phase = (phase, rounds)
            hammer.world.firewall.decide_many(watched, hammer.world.now_ns, verdicts)
            assert (verdicts["reason"] == reason).all(), f"round {rounds}, {phase}: {np.unique(verdicts['reason'])}"
            hammer.wait_until_seen()
        if hammer.faults or (time.monotonic() > ends_s and rounds >= 3):
            return rounds + 1
    raise AssertionError


@contextmanager
def not_stuck() -> Iterator[None]:
    """End the process, telling where every thread is, if what is inside takes too long."""
    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("shards", [1, 4])
def test_no_packet_is_lost_and_none_passes_while_rules_members_and_bindings_swap(shards, capfd):
    hammer = hammered(shards)
    steady = [opening(server, 22, flow) for server in range(SERVERS) for flow in range(FLOWS_PER_SERVER)]
    swung = [opening(server, 80, flow) for server in range(SERVERS) for flow in range(FLOWS_PER_SERVER)]
    for each in steady + swung:
        hammer.world.connect(each)
    going_on = conversation(steady)
    with capfd.disabled(), not_stuck():
        watched = hammer.records(conversation(swung))
        for _ in range(3):
            hammer.start(hammer.batch(hammer.records(going_on), watched))
        hammer.start(hammer.singly(going_on))
        try:
            rounds = _keep_changing(hammer, watched)
        finally:
            hammer.stop()
    assert hammer.faults == []
    assert len(hammer.seen) == 2 * rounds
    assert rounds >= 4
    assert hammer.asked > 0
    assert hammer.world.firewall.flows.check(hammer.world.now_ns) == []
