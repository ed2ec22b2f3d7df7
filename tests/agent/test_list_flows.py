"""VerdictService.ListFlows over a socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from agent_world import ANY_EGRESS, CLIENT, CLIENT6, DB, DNS, PING6, SSH, World, icmp, other, reply, tcp, udp
from served import PATIENCE_S, refusal, served

from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

DB4, DB6 = "10.0.0.9", "2001:db8::9"


async def listed(stub, **wanted):
    return [each async for each in stub.ListFlows(pb.ListFlowsRequest(**wanted), timeout=PATIENCE_S)]


async def flows(stub, **wanted):
    return [flow for response in await listed(stub, **wanted) for flow in response.flows]


async def test_a_flow_has_all_that_a_person_needs(engine):
    world = World(engine, SSH)
    world.connect(tcp(CLIENT, DB4, 22, length=60))
    world.advance(10)
    assert world.reason(tcp(CLIENT, DB4, 22, 0x10)).name == "ESTABLISHED"
    world.advance(1.5)
    async with served(world) as stub:
        [flow] = await flows(stub)
    expected = pb.Flow(
        server=DB,
        protocol=types.PROTOCOL_TCP,
        opening_direction=types.DIRECTION_INGRESS,
        local_address=DB4,
        local_port=22,
        remote_address=CLIENT,
        remote_port=40_000,
        state=pb.FLOW_STATE_ESTABLISHED,
        answered=True,
        rule_id=SSH.id,
        group_id="db",
        opening_packets=3,
        opening_bytes=220,
        reply_packets=1,
        reply_bytes=60,
    )
    # As exact as every engine keeps them.
    assert 0 <= flow.age.ToMilliseconds() - 11_500 <= 17
    assert 0 <= flow.idle.ToMilliseconds() - 1_500 <= 1
    expected.age.CopyFrom(flow.age)
    expected.idle.CopyFrom(flow.idle)
    expected.remaining.FromMilliseconds(432_000_000 - 1_500)
    assert flow == expected


async def test_icmp_other_protocols_and_revoked_flows_are_told_as_what_they_are(engine):
    world = World(engine, ANY_EGRESS, PING6, DNS)
    ping, gre, query = icmp(CLIENT6, DB6, 128), other(DB4, CLIENT, 47), udp(CLIENT, DB4, 53)
    for opening in (ping, gre, query):
        world.open_answered(opening)
    world.set_rules(ANY_EGRESS, PING6)
    assert world.reason(reply(query)).name == "REVOKED"
    async with served(world) as stub:
        pinged, tunnel, revoked = await flows(stub)
    assert (pinged.protocol, pinged.HasField("protocol_number")) == (types.PROTOCOL_ICMP, False)
    assert (pinged.icmp_type, pinged.icmp_id, pinged.local_port, pinged.remote_port) == (128, 7, 0, 0)
    assert (tunnel.protocol, tunnel.protocol_number, tunnel.local_port) == (types.PROTOCOL_NUMBER, 47, 0)
    assert (tunnel.opening_direction, tunnel.HasField("icmp_type"), tunnel.resume_state) == (types.DIRECTION_EGRESS, False, 0)
    assert (revoked.state, revoked.resume_state, revoked.revoked) == (pb.FLOW_STATE_REVOKED, pb.FLOW_STATE_ANSWERED, True)
    assert (revoked.rule_id, revoked.remaining.seconds) == (DNS.id, 120)


@pytest.mark.parametrize(
    ("expected", "wanted"),
    [
        (["ssh", "ssh6", "gre"], {}),
        (["ssh", "ssh6", "gre"], {"server": DB, "protocol": types.PROTOCOL_ANY}),
        ([], {"server": "p/web"}),
        (["ssh", "gre"], {"remote_cidr": "203.0.113.9/24"}),
        (["ssh", "gre"], {"remote_cidr": CLIENT}),
        (["ssh6"], {"remote_cidr": "2001:db8:1::/48"}),
        (["ssh", "ssh6"], {"port": 22}),
        ([], {"port": 23}),
        (["ssh", "ssh6"], {"protocol": types.PROTOCOL_TCP}),
        ([], {"protocol": types.PROTOCOL_UDP}),
        (["gre"], {"protocol": types.PROTOCOL_NUMBER, "protocol_number": 47}),
        (["ssh"], {"state": pb.FLOW_STATE_ESTABLISHED}),
        (["ssh6"], {"state": pb.FLOW_STATE_SYN_SENT}),
        (["gre"], {"rule_id": ANY_EGRESS.id}),
        (["ssh", "ssh6"], {"rule_id": "b-s"}),
        (["ssh"], {"limit": 1}),
        (["ssh6"], {"limit": 1, "state": pb.FLOW_STATE_SYN_SENT}),
        (["ssh", "ssh6", "gre"], {"limit": 4}),
    ],
    ids=str,
)
async def test_a_request_tells_exactly_the_flows_that_fit(engine, expected, wanted):
    world = World(engine, ANY_EGRESS, SSH)
    world.connect(tcp(CLIENT, DB4, 22))
    assert world.decide(tcp(CLIENT6, DB6, 22)).opened
    assert world.decide(other(DB4, CLIENT, 47)).opened
    names = {(types.PROTOCOL_TCP, CLIENT): "ssh", (types.PROTOCOL_TCP, CLIENT6): "ssh6", (types.PROTOCOL_NUMBER, CLIENT): "gre"}
    async with served(world) as stub:
        found = await flows(stub, **wanted)
    assert [names[flow.protocol, flow.remote_address] for flow in found] == expected


def many(world, flows_count, first=1_000):
    opening = udp(CLIENT, DB4, 53)
    for port in range(first, first + flows_count):
        assert world.firewall.decide(replace(opening, source_port=port), world.now_ns).opened


async def test_many_flows_come_in_bounded_messages(engine):
    world = World(engine, DNS)
    many(world, 1_000)
    async with served(world) as stub:
        sizes = [len(response.flows) for response in await listed(stub)]
        assert (sum(sizes), max(sizes), len(sizes)) == (1_000, 256, 4)
        assert [len(response.flows) for response in await listed(stub, limit=300)] == [256, 44]
        assert [len(response.flows) for response in await listed(stub, limit=256)] == [256]


async def test_a_filter_that_no_flow_fits_gives_an_empty_stream(engine):
    world = World(engine, DNS)
    many(world, 600)
    async with served(world) as stub:
        assert await listed(stub, remote_cidr="192.0.2.1") == []


async def test_other_calls_are_answered_while_a_large_table_is_told(engine):
    world = World(engine, DNS)
    many(world, 6_000)
    async with served(world) as stub:
        telling = stub.ListFlows(pb.ListFlowsRequest(remote_cidr="192.0.2.1"), timeout=PATIENCE_S)
        ended = asyncio.create_task(_drain(telling))
        answered = 0
        while not ended.done():
            await stub.GetStats(pb.GetStatsRequest(), timeout=PATIENCE_S)
            answered += 1
    assert answered >= 2


async def _drain(stream):
    async for _ in stream:
        pass


async def test_verdicts_go_on_between_two_messages(engine):
    world = World(engine, DNS)
    many(world, 600)
    async with served(world) as stub:
        telling = stub.ListFlows(pb.ListFlowsRequest(), timeout=PATIENCE_S)
        told = set()
        async for response in telling:
            if not told:
                many(world, 600, first=10_000)
            told.update(flow.remote_port for flow in response.flows)
    assert told >= set(range(1_000, 1_600))


@pytest.mark.parametrize(
    ("field", "message", "wanted"),
    [
        ("server", "'web-1' is no server; write project/id", {"server": "web-1"}),
        ("server", "'a/b/c' is no server; write project/id", {"server": "a/b/c"}),
        ("remote_cidr", "'10.0.0.0/33' is no IPv4 or IPv6 prefix or address", {"remote_cidr": "10.0.0.0/33"}),
        ("remote_cidr", "'10.0.0.0/255.0.0.0' is no IPv4 or IPv6 prefix or address", {"remote_cidr": "10.0.0.0/255.0.0.0"}),
        ("remote_cidr", "'fe80::1%eth0' has a scope, which no packet carries", {"remote_cidr": "fe80::1%eth0"}),
        ("remote_cidr", "'::ffff:10.0.0.1' is IPv4-mapped; write it as IPv4", {"remote_cidr": "::ffff:10.0.0.1"}),
        ("port", "65536 is not in 1..65535", {"port": 65_536}),
        ("port", "protocol 1 has no ports", {"port": 22, "protocol": types.PROTOCOL_ICMP}),
        ("protocol", "9 is no protocol", {"protocol": 9}),
        ("protocol_number", "must be given exactly when protocol is PROTOCOL_NUMBER", {"protocol_number": 47}),
        ("protocol_number", "must be given exactly when protocol is PROTOCOL_NUMBER", {"protocol": types.PROTOCOL_NUMBER}),
        ("protocol_number", "256 is not in 0..255", {"protocol": types.PROTOCOL_NUMBER, "protocol_number": 256}),
        ("state", "99 is no state of a flow", {"state": 99}),
        ("rule_id", "has 129 characters, the most allowed is 128", {"rule_id": "0" * 129}),
    ],
    ids=str,
)
async def test_a_filter_that_nothing_can_be_like_is_refused_with_its_field(engine, field, message, wanted):
    async with served(World(engine)) as stub:
        code, said, details = await refusal(stub.ListFlows(pb.ListFlowsRequest(**wanted), timeout=PATIENCE_S))
    [violation] = details["BadRequest"].field_violations
    assert (code, said) == ("INVALID_ARGUMENT", f"{field}: {message}")
    assert (violation.field, violation.description, details["ErrorInfo"].reason) == (field, message, "INVALID_VALUE")
