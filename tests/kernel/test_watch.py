"""Real packets as those are told of them who watch verdicts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import SYN_ACK, error_about, icmp, other, reply, tcp, udp
from frames import frame
from rig import DB, EGRESS, INGRESS, WEB, Rig, allow, until

from secgroups.agent.errors import EnforcementError, TooManyTapsError
from secgroups.agent.flow import Packet, Reason
from secgroups.agent.kernel.flows import KernelFlows
from secgroups.agent.kernel.packet_log import PacketLog
from secgroups.agent.kernel.settings import DEFAULT_LOG_GROUP, KernelSettings, Told
from secgroups.agent.kernel.taps import KernelTaps
from secgroups.agent.tap import TAPS_MAX, ReferenceTap, TapSettings, VerdictEvent

WEB4, DB4, WEB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
HTTP = allow("http", protocol=6, ports=80)
OUT = allow("out", EGRESS)

DENIALS = TapSettings(events_max=1_000)
EVERYTHING = TapSettings(events_max=1_000, allowed=True)


@pytest.fixture
async def taps(rig: Rig) -> AsyncIterator[KernelTaps]:
    flows = KernelFlows(lambda: rig.enforcer.ruleset, essential=True)
    made = KernelTaps(rig.enforcer, lambda: flows.guards)
    yield made
    await made.close()


async def told(tap: ReferenceTap, count: int) -> list[VerdictEvent]:
    """Return the next ``count`` events, waiting for them."""
    events: list[VerdictEvent] = []

    def all_are_there() -> bool:
        events.extend(tap.read(count - len(events)))
        return len(events) == count

    await until(all_are_there, f"{count} events")
    return events


def summary(event: VerdictEvent) -> tuple[object, ...]:
    packet, verdict = event.packet, event.verdict
    return packet.server, packet.direction, verdict.reason, verdict.rule_id, verdict.opened


def logging_rules(rig: Rig) -> int:
    return rig.world.nft("list", "ruleset").count(f"group {DEFAULT_LOG_GROUP}")


async def test_a_denied_packet_is_told_as_it_was(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    tap = await taps.open(DENIALS)
    sent = tcp(CLIENT, WEB4, 81, source_port=40_007, at=WEB, direction=INGRESS, length=40)
    assert rig.passes(tcp(CLIENT, WEB4, 80))
    assert not rig.passes(sent)
    (event,) = await told(tap, 1)
    assert event.packet == sent
    assert (event.verdict.reason, event.verdict.rule_id, event.verdict.opened) == (Reason.NO_RULE, "", False)


@pytest.mark.parametrize(
    ("expected", "packet"),
    [
        ((WEB, INGRESS, Reason.NO_RULE), udp(CLIENT6, WEB6, 53)),
        ((WEB, INGRESS, Reason.NO_RULE), icmp(CLIENT, WEB4, 8)),
        ((WEB, INGRESS, Reason.NO_RULE), other(CLIENT, WEB4, 47)),
        ((WEB, EGRESS, Reason.NO_RULE), tcp(WEB4, CLIENT, 80)),
        ((WEB, INGRESS, Reason.INVALID_STATE), tcp(CLIENT, WEB4, 80, SYN_ACK)),
        ((WEB, EGRESS, Reason.INVALID_STATE), tcp(WEB4, CLIENT, 80, SYN_ACK)),
        ((WEB, INGRESS, Reason.INVALID_PACKET), tcp(CLIENT, WEB4, 80, source_port=0)),
        ((WEB, EGRESS, Reason.ROGUE_SERVICE), udp(WEB4, CLIENT, 68, source_port=67)),
        ((WEB, EGRESS, Reason.SPOOFED_SOURCE), tcp(WEB4, CLIENT, 80)),
        ((DB, INGRESS, Reason.NO_RULE), tcp(CLIENT, DB4, 80)),
        ((WEB, INGRESS, Reason.NO_RULE), error_about(udp(WEB4, CLIENT, 123), source=OTHER)),
    ],
    ids=str,
)
async def test_a_denial_says_at_which_server_and_why(
    rig: Rig, taps: KernelTaps, expected: tuple[object, ...], packet: Packet
) -> None:
    await rig.change(groups={"web": [HTTP], "db": [OUT]}, servers={WEB: ["web"], DB: ["db"]})
    tap = await taps.open(DENIALS)
    if expected[2] is Reason.SPOOFED_SOURCE:
        rig.world.arrivals("client", frame(packet), "db")
    else:
        assert not rig.passes(packet)
    (event,) = await told(tap, 1)
    assert summary(event) == (*expected, "", False)
    assert (event.packet.source, event.packet.destination) == (packet.source, packet.destination)
    assert event.packet.protocol == packet.protocol
    assert event.packet.quoted == packet.quoted
    assert (await rig.enforcer.counts()).denied == {expected[2]: 1}


async def test_of_two_servers_the_one_is_told_whose_rules_deny(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP], "db": []}, servers={WEB: ["web"], DB: ["db"]})
    tap = await taps.open(DENIALS)
    assert not rig.passes(tcp(DB4, WEB4, 80))
    await rig.change(groups={"db": [OUT]})
    assert not rig.passes(tcp(DB4, WEB4, 81))
    assert [summary(event)[:3] for event in await told(tap, 2)] == [(DB, EGRESS, Reason.NO_RULE), (WEB, INGRESS, Reason.NO_RULE)]


async def test_packets_of_a_revoked_connection_are_told_either_way(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP], "db": [OUT]}, servers={WEB: ["web"], DB: ["db"]})
    await rig.stamped()
    tap = await taps.open(DENIALS)
    opening = tcp(DB4, WEB4, 80)
    answer = reply(opening, tcp_flags=SYN_ACK)
    assert rig.passes(opening)
    await rig.change(groups={"web": []})
    assert not rig.passes(opening)
    assert not rig.passes(answer)
    await rig.change(groups={"web": [HTTP], "db": []})
    assert not rig.passes(answer)
    assert [summary(event)[:3] for event in await told(tap, 3)] == [
        (WEB, INGRESS, Reason.REVOKED),
        (WEB, EGRESS, Reason.REVOKED),
        (DB, INGRESS, Reason.REVOKED),
    ]


async def test_servers_known_by_their_interface_are_told_by_it(rig: Rig, taps: KernelTaps) -> None:
    rig.settings(KernelSettings(ports={WEB: "to-web", DB: "to-db"}))
    flows = KernelFlows(lambda: rig.enforcer.ruleset, essential=True)
    taps = KernelTaps(rig.enforcer, lambda: flows.guards)
    await rig.change(groups={"web": [OUT]}, servers={WEB: ["web"]})
    tap = await taps.open(DENIALS)
    for host, packet in (
        ("web", tcp("10.0.0.77", CLIENT, 80)),
        ("db", tcp(DB4, CLIENT, 80)),
        ("client", tcp(CLIENT, DB4, 80)),
    ):
        rig.world.wires[host].send(frame(packet))
    assert [summary(event)[:3] for event in await told(tap, 3)] == [
        (WEB, EGRESS, Reason.SPOOFED_SOURCE),
        (DB, EGRESS, Reason.UNKNOWN_SERVER),
        (DB, INGRESS, Reason.UNKNOWN_SERVER),
    ]
    await taps.close()


async def test_what_opens_a_connection_is_told_once_with_its_rule_if_it_is_asked_for(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP], "db": [OUT]}, servers={WEB: ["web"], DB: ["db"]})
    await rig.stamped()
    denials, everything = await taps.open(DENIALS), await taps.open(EVERYTHING)
    opening = tcp(CLIENT, WEB4, 80)
    for packet in (opening, reply(opening, tcp_flags=SYN_ACK), opening):
        assert rig.passes(packet)
    # Judged anew, and not told anew.
    await rig.change(groups={"web": [HTTP, allow("other", protocol=6, ports=81)]})
    assert rig.passes(opening)
    assert rig.passes(tcp(DB4, WEB4, 81))
    assert not rig.passes(tcp(CLIENT, WEB4, 82))
    assert [summary(event) for event in await told(everything, 4)] == [
        (WEB, INGRESS, Reason.NEW, "http", True),
        (DB, EGRESS, Reason.NEW, "out", True),
        (WEB, INGRESS, Reason.NEW, "other", True),
        (WEB, INGRESS, Reason.NO_RULE, "", False),
    ]
    assert [event.verdict.reason for event in await told(denials, 1)] == [Reason.NO_RULE]


async def test_rules_log_nothing_unless_somebody_watches(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    assert logging_rules(rig) == 0
    denials = await taps.open(DENIALS)
    for_denials = logging_rules(rig)
    everything = await taps.open(EVERYTHING)
    assert logging_rules(rig) > for_denials > 0
    await rig.change(groups={"web": [HTTP, OUT]})
    assert logging_rules(rig) > for_denials
    everything.close()
    await until(lambda: logging_rules(rig) == for_denials, "openings are not logged any more")
    denials.close()
    await until(lambda: logging_rules(rig) == 0, "nothing is logged any more")
    tap = await taps.open(DENIALS)
    assert not rig.passes(tcp(CLIENT, WEB4, 81))
    assert len(await told(tap, 1)) == 1


async def test_what_is_told_goes_on_when_a_table_is_put_back(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    tap = await taps.open(EVERYTHING)
    before, before_hooks = logging_rules(rig), rig.world.nft("list", "ruleset").count("hook")
    rig.world.nft("delete", "table", "inet", "secgroups-a")
    await until(lambda: rig.world.nft("list", "ruleset").count("hook") == before_hooks, "the rules are back")
    assert logging_rules(rig) == before
    assert not rig.passes(tcp(CLIENT, WEB4, 81))
    assert rig.passes(tcp(CLIENT, WEB4, 80))
    assert [event.verdict.reason for event in await told(tap, 2)] == [Reason.NO_RULE, Reason.NEW]


async def test_what_the_kernel_could_not_send_is_counted(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.enforcer.tell(Told.DENIALS)
    log = PacketLog(DEFAULT_LOG_GROUP, socket_bytes=32_768)
    try:
        for number in range(1_000):
            rig.world.wires["client"].send(frame(tcp(CLIENT, WEB4, 81, source_port=30_000 + number)))
        rig.world.settle("client", "web")
        found = 0

        def take() -> int:
            nonlocal found
            while (read := log.read()) is not None:
                found += len(read)
            return found

        await until(lambda: take() > 0, "something was told")
        # All that waited in the kernel has come or is lost when what is sent now has come.
        last = tcp(CLIENT, WEB4, 82)
        rig.passes(last)
        await until(lambda: take() + log.lost == 1_001, "the last is told")
        assert log.lost > 0
    finally:
        log.close()
        await rig.enforcer.tell(Told.NOTHING)


@pytest.mark.parametrize(("one_in", "dropped"), [(1, 10), (3, 4), (100, 1)])
async def test_a_tap_counts_of_what_was_lost_what_it_would_have_taken(
    rig: Rig, taps: KernelTaps, one_in: int, dropped: int
) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    tap = await taps.open(TapSettings(events_max=10, one_in=one_in))
    tap.lose(10)
    assert tap.dropped == dropped
    for number in range(one_in):
        assert not rig.passes(tcp(CLIENT, WEB4, 81, source_port=30_000 + number))
    (event,) = await told(tap, 1)
    # The one that is next in the count of all.
    assert event.packet.source_port == 30_000 + (-10 % one_in)


async def test_a_tap_that_is_full_drops_and_counts(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    small, large = await taps.open(TapSettings(events_max=2)), await taps.open(DENIALS)
    for number in range(5):
        assert not rig.passes(tcp(CLIENT, WEB4, 81, source_port=30_000 + number))
    assert len(await told(large, 5)) == 5
    assert (len(small.read(10)), small.dropped) == (2, 3)


async def test_a_group_that_another_program_listens_to_is_said_so_and_leaves_nothing(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    taken = PacketLog(DEFAULT_LOG_GROUP)
    try:
        with pytest.raises(
            EnforcementError, match="another program listens to nflog group 7710: choose one for the agent with --kernel-log-group"
        ):
            await taps.open(DENIALS)
    finally:
        taken.close()
    assert logging_rules(rig) == 0
    tap = await taps.open(DENIALS)
    assert not rig.passes(tcp(CLIENT, WEB4, 81))
    assert len(await told(tap, 1)) == 1


async def test_more_taps_than_may_be_are_refused(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    for _ in range(TAPS_MAX):
        await taps.open(DENIALS)
    with pytest.raises(TooManyTapsError):
        await taps.open(DENIALS)


async def test_taps_that_come_and_go_at_once_leave_nothing(rig: Rig, taps: KernelTaps) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})

    async def look(settings: TapSettings, patience: Callable[[], float]) -> None:
        opening = asyncio.create_task(taps.open(settings))
        await asyncio.sleep(patience())
        opening.cancel()
        for opened in await asyncio.gather(opening, return_exceptions=True):
            if isinstance(opened, ReferenceTap):
                opened.close()

    for number in range(5):
        await asyncio.gather(*(look(EVERYTHING if each % 2 else DENIALS, lambda n=number: n / 100) for each in range(4)))
    await taps.close()
    assert logging_rules(rig) == 0
    PacketLog(DEFAULT_LOG_GROUP).close()


async def test_a_log_that_can_not_be_read_any_more_is_said_so(taps: KernelTaps) -> None:
    with structlog.testing.capture_logs() as logged:
        tap = await taps.open(DENIALS)
        assert taps._log is not None
        taps._log.close()
        await until(lambda: bool(logged), "it is said")
    assert [(each["event"], each["log_level"]) for each in logged] == [("kernel_log_not_read", "error")]
    tap.close()
