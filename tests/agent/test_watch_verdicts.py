"""VerdictService.WatchVerdicts over a socket: which verdicts are told, and that it never costs a verdict anything."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import grpc
import pytest
from agent_world import (
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    FIRST,
    LATER,
    OTHER,
    SSH,
    SYN_ACK,
    WEB,
    World,
    error_about,
    icmp,
    other,
    reply,
    tcp,
    udp,
)
from served import PATIENCE_S, refusal, served, server_of

from secgroups.agent.packets import packet_message, packet_of
from secgroups.agent.tap import TAPS_MAX
from secgroups.agent.verdict_messages import tap_settings_of, verdict_filter_of
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

DB4, DB6, WEB4 = "10.0.0.9", "2001:db8::9", "10.0.0.5"
SYN_22, SYN_23, QUERY = tcp(CLIENT, DB4, 22), tcp(CLIENT, DB4, 23), udp(OTHER, DB4, 53, source_port=5_353)
PACKETS = {
    "ssh": SYN_22,
    "ssh-answer": reply(SYN_22, tcp_flags=SYN_ACK),
    "telnet": SYN_23,
    "telnet6": tcp(CLIENT6, DB6, 23),
    "query": QUERY,
    "ping": icmp(CLIENT, DB4, 8),
    "gre": other(OTHER, DB4, 47),
    "forged": udp(OTHER, CLIENT, 53, at=DB),
    "elsewhere": udp(CLIENT, WEB4, 53),
    "lost": tcp(CLIENT, DB4, 22, SYN_ACK, source_port=9),
}


@contextlib.asynccontextmanager
async def watching(stub, **wanted):
    """Give a watch that has begun."""
    call = stub.WatchVerdicts(pb.WatchVerdictsRequest(**wanted), timeout=PATIENCE_S)
    assert await call.read() == pb.WatchVerdictsResponse()
    try:
        yield call
    finally:
        call.cancel()


def told(world, **wanted):
    """Return the names of the packets whose verdicts a watch would tell, in order."""
    request = pb.WatchVerdictsRequest(**wanted)
    verdicts = verdict_filter_of(request)
    how = tap_settings_of(request, verdicts)
    tap = world.firewall.watch(how.events_max, one_in=how.one_in, allowed=how.allowed)
    for packet in PACKETS.values():
        world.firewall.decide(packet, world.now_ns)
    names = {packet: name for name, packet in PACKETS.items()}
    return [names[event.packet] for event in tap.read(how.events_max) if verdicts.matches(event)]


DENIED = ["telnet", "telnet6", "ping", "gre", "forged", "elsewhere", "lost"]


@pytest.mark.parametrize(
    ("expected", "wanted"),
    [
        (DENIED, {}),
        (list(PACKETS), {"actions": [types.ACTION_ALLOW, types.ACTION_DENY]}),
        (["ssh", "ssh-answer", "query"], {"actions": [types.ACTION_ALLOW]}),
        (["telnet", "telnet6", "ping", "gre", "elsewhere"], {"reasons": [types.REASON_NO_RULE]}),
        (["forged", "lost"], {"reasons": [types.REASON_SPOOFED_SOURCE, types.REASON_INVALID_STATE]}),
        (["ssh-answer"], {"reasons": [types.REASON_ESTABLISHED]}),
        (["elsewhere"], {"servers": [WEB]}),
        (DENIED, {"servers": [WEB, DB]}),
        (["gre", "forged"], {"source_cidrs": [OTHER]}),
        (["telnet6", "gre", "forged"], {"source_cidrs": [f"{OTHER}/32", "2001:db8::/32"]}),
        (["elsewhere"], {"destination_cidrs": ["10.0.0.0/29"]}),
        (["telnet", "ping", "forged", "elsewhere", "lost"], {"either_cidrs": [CLIENT]}),
        (["forged"], {"destination_cidrs": [CLIENT], "source_cidrs": [OTHER]}),
        ([], {"destination_cidrs": [CLIENT], "source_cidrs": [CLIENT]}),
        (["telnet", "telnet6"], {"ports": [23]}),
        (["telnet", "telnet6", "lost"], {"ports": [23, 9]}),
        (["ssh-answer"], {"ports": [22], "reasons": [types.REASON_ESTABLISHED]}),
        (["telnet", "telnet6", "lost"], {"protocol": types.PROTOCOL_TCP}),
        (["ping"], {"protocol": types.PROTOCOL_ICMP}),
        (["gre"], {"protocol": types.PROTOCOL_NUMBER, "protocol_number": 47}),
        (["ssh", "ssh-answer"], {"actions": [types.ACTION_ALLOW], "rule_ids": [SSH.id]}),
        (["ssh", "ssh-answer", "query"], {"actions": [types.ACTION_ALLOW], "rule_ids": ["b-", "c-"]}),
        ([], {"rule_ids": [SSH.id]}),
        (["telnet", "ping", "forged", "lost"], {"one_in": 2}),
    ],
    ids=str,
)
def test_a_watch_tells_exactly_the_verdicts_that_fit(engine, expected, wanted):
    world = World(engine, ANY_EGRESS, SSH, DNS)
    world.apply(groups=(world.group("web", ANY_EGRESS),), servers=(world.binding(WEB, "web"),))
    assert told(world, **wanted) == expected


async def test_a_verdict_is_told_whole_whoever_asked_for_it(engine):
    world = World(engine, SSH)
    async with served(world) as stub, watching(stub, actions=[types.ACTION_ALLOW, types.ACTION_DENY]) as call:
        asked = pb.DecideRequest(packet=packet_message(SYN_22))
        before = pb.VerdictEvent().time
        before.GetCurrentTime()
        await stub.Decide(asked, timeout=PATIENCE_S)
        world.firewall.decide(SYN_23, world.now_ns)
        events = [*(await call.read()).events]
        while len(events) < 2:
            events += (await call.read()).events
    allowed, denied = events
    assert (allowed.packet, allowed.action, allowed.reason) == (asked.packet, types.ACTION_ALLOW, types.REASON_NEW)
    assert (allowed.rule_id, allowed.opened) == (SSH.id, True)
    assert (denied.action, denied.reason, denied.rule_id, denied.opened) == (types.ACTION_DENY, types.REASON_NO_RULE, "", False)
    # The clocks stand still between the verdict and the answer but for the real one that the answer's time comes from.
    assert abs(allowed.time.ToNanoseconds() - before.ToNanoseconds()) < PATIENCE_S * 1_000_000_000


@pytest.mark.parametrize(
    "packet",
    [
        *PACKETS.values(),
        icmp(CLIENT6, DB6, 128, code=1),
        error_about(tcp(DB4, CLIENT, 80)),
        error_about(icmp(DB6, CLIENT6, 128)),
        udp(CLIENT, DB4, 53, fragment=FIRST, fragment_id=7),
        replace(udp(CLIENT, DB4, 0, source_port=0), fragment=LATER, fragment_id=70_000),
        tcp(CLIENT, DB4, 22, 0xFF),
        other(CLIENT, DB4, 58),
    ],
    ids=str,
)
def test_the_packet_of_a_message_is_the_packet_it_was_made_of(packet):
    assert packet_of(packet_message(packet)) == packet


async def test_what_a_slow_watcher_has_no_room_for_is_dropped_and_told(engine):
    world = World(engine, SSH)
    async with served(world) as stub, watching(stub, buffer_events=10, ports=[1]) as call:
        # Nothing is read meanwhile: all of this happens before the watch has its next turn.
        for port in range(1, 101):
            world.firewall.decide(replace(SYN_23, source_port=port), world.now_ns)
        response = await call.read()
        assert ([event.packet.source_port for event in response.events], response.dropped) == ([1], 90)
        world.firewall.decide(replace(SYN_23, source_port=1), world.now_ns)
        response = await call.read()
        assert (len(response.events), response.dropped) == (1, 90)


async def test_many_verdicts_come_in_bounded_messages(engine):
    world = World(engine, SSH)
    async with served(world) as stub, watching(stub, buffer_events=1_000) as call:
        for port in range(1, 1_001):
            world.firewall.decide(replace(SYN_23, source_port=port), world.now_ns)
        ports, sizes = [], []
        while len(ports) < 1_000:
            events = (await call.read()).events
            ports += [event.packet.source_port for event in events]
            sizes.append(len(events))
    assert ports == list(range(1, 1_001))
    assert max(sizes) == 256


async def test_only_so_many_may_watch_and_one_that_goes_makes_room(engine):
    world = World(engine, SSH)
    async with served(world) as stub, contextlib.AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(watching(stub)) for _ in range(TAPS_MAX)]
        code, said, details = await refusal(stub.WatchVerdicts(pb.WatchVerdictsRequest(), timeout=PATIENCE_S))
        assert (code, said) == ("RESOURCE_EXHAUSTED", "8 watch the verdicts of this agent, the most allowed is 8")
        assert (details["ErrorInfo"].reason, details["QuotaFailure"].violations[0].description) == ("LIMIT_EXCEEDED", said)
        for gone in range(TAPS_MAX):
            calls[gone].cancel()
            await stack.enter_async_context(_when_there_is_room(stub))


@contextlib.asynccontextmanager
async def _when_there_is_room(stub):
    """Give a watch that has begun as soon as the agent has noticed that another one went."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            call = stub.WatchVerdicts(pb.WatchVerdictsRequest(), timeout=PATIENCE_S)
            try:
                assert await call.read() == pb.WatchVerdictsResponse()
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
    yield call
    call.cancel()


async def test_an_agent_that_stops_ends_its_watches_at_once(engine):
    server = server_of(World(engine, SSH))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel, watching(VerdictServiceStub(channel)) as call:
        # Long before it would have to: a watch never ends by itself.
        async with asyncio.timeout(PATIENCE_S):
            await server.stop(2 * PATIENCE_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the agent stops")


TOO_MANY = ["10.0.0.1"] * 33


@pytest.mark.parametrize(
    ("field", "message", "wanted"),
    [
        ("actions[1]", "0 is no action", {"actions": [types.ACTION_DENY, types.ACTION_UNSPECIFIED]}),
        ("reasons[0]", "99 is no reason", {"reasons": [99]}),
        (
            "reasons",
            "NEW is a reason to ALLOW, which is not asked for",
            {"actions": [types.ACTION_DENY], "reasons": [types.REASON_NEW]},
        ),
        ("servers[1]", "'db' is no server; write project/id", {"servers": [DB, "db"]}),
        ("source_cidrs[0]", "'10.0.0' is no IPv4 or IPv6 prefix or address", {"source_cidrs": ["10.0.0"]}),
        ("destination_cidrs[0]", "'10.0.0.0/08' is no IPv4 or IPv6 prefix or address", {"destination_cidrs": ["10.0.0.0/08"]}),
        ("either_cidrs[1]", "'' is no IPv4 or IPv6 prefix or address", {"either_cidrs": ["10.0.0.0/8", ""]}),
        ("either_cidrs", "has 33 values, the most allowed is 32", {"either_cidrs": TOO_MANY}),
        ("ports", "0 is not in 1..65535", {"ports": [22, 0]}),
        ("ports", "protocol 1 has no ports", {"ports": [22], "protocol": types.PROTOCOL_ICMP}),
        ("protocol_number", "must be given exactly when protocol is PROTOCOL_NUMBER", {"protocol_number": 0}),
        ("rule_ids[0]", "is empty", {"rule_ids": [""]}),
        ("one_in", "1000001 is not in 0..1000000", {"one_in": 1_000_001}),
        ("buffer_events", "65537 is not in 0..65536", {"buffer_events": 65_537}),
    ],
    ids=str,
)
async def test_a_watch_for_what_can_not_be_is_refused_with_its_field(engine, field, message, wanted):
    async with served(World(engine)) as stub:
        code, said, details = await refusal(stub.WatchVerdicts(pb.WatchVerdictsRequest(**wanted), timeout=PATIENCE_S))
    [violation] = details["BadRequest"].field_violations
    assert (code, said, violation.field, violation.description) == ("INVALID_ARGUMENT", f"{field}: {message}", field, message)
