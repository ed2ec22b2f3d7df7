"""DecideStream over a real socket: handles, verdicts, rules that are told once, and requests that are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from agent_world import ACK, ANY_EGRESS, CLIENT, DB, DNS, SSH, SYN_ACK, WEB, World, error_about, reply, rule, tcp, udp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from secgroups.agent.flow import TCP, Direction, Packet
from secgroups.agent.records import QUOTE_BYTES, RECORD_BYTES, VERDICT_BYTES, pack, pack_many, unpack_verdict
from secgroups.agent.replica import Replica
from secgroups.agent.server import AgentServer
from secgroups.agent.services import decide_stream
from secgroups.agent.services.verdicts import Verdicts
from secgroups.agent.subscription import Identity, Subscription
from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

DB4 = "10.0.0.9"
RECORD = pack(tcp(CLIENT, DB4, 22), 1)[0]


class Stream:
    """One stream of a client, which keeps in mind what it was told."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.DecideStreamRequest, pb.DecideStreamResponse]) -> None:
        self.call = call
        self.handles: dict[str, int] = {}
        self.rules: dict[int, str] = {}

    async def ask(self, **fields: object) -> pb.DecideStreamResponse:
        await self.call.write(pb.DecideStreamRequest(**fields))
        answer = await self.call.read()
        assert isinstance(answer, pb.DecideStreamResponse), await self.call.code()
        if answer.rules_begin_anew:
            self.rules.clear()
        self.rules.update((each.handle, each.rule_id) for each in answer.rules)
        return answer

    async def name(self, *servers: str) -> list[int]:
        answer = await self.ask(servers=servers)
        self.handles.update(zip(servers, answer.server_handles, strict=True))
        return list(answer.server_handles)

    async def decide(self, *packets: Packet) -> list[tuple[str, str]]:
        """Return reasons and rules."""
        records, quotes = pack_many(packets, self.handles.__getitem__)
        packed = (await self.ask(records=records, quotes=quotes)).verdicts
        entries = [packed[at : at + VERDICT_BYTES] for at in range(0, len(packed), VERDICT_BYTES)]
        verdicts = [unpack_verdict(entry, self.rules.__getitem__).verdict for entry in entries]
        return [(verdict.reason.name, verdict.rule_id) for verdict in verdicts]


@asynccontextmanager
async def served(world: World) -> AsyncIterator[VerdictServiceStub]:
    """An agent's server that answers by the firewall and the clock of ``world``."""
    identity = Identity(agent_id="h1", boot_id="b", boot_time_ns=0, version="")
    replica = Replica(world.firewall)
    subscription = Subscription(
        "unix:/nowhere", identity, world.firewall, replica, applied=bool, reconnect_min_s=1, reconnect_max_s=1
    )
    server = AgentServer("127.0.0.1:0", Verdicts("h1", world.firewall, replica, subscription, clock=lambda: world.now_ns))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield VerdictServiceStub(channel)
    finally:
        await server.stop(0)


async def test_a_stream_names_servers_judges_batches_in_order_and_tells_each_rule_once(engine):
    world = World(engine, SSH, DNS)
    syn = tcp(CLIENT, DB4, 22)
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        (handle,) = await stream.name(DB)
        assert handle != 0
        assert await stream.decide(syn, reply(syn, tcp_flags=SYN_ACK), tcp(CLIENT, DB4, 23)) == [
            ("NEW", "b-ssh"),
            ("ESTABLISHED", "b-ssh"),
            ("NO_RULE", ""),
        ]
        records, _ = pack_many([tcp(CLIENT, DB4, 22, ACK), udp(CLIENT, DB4, 53)], stream.handles.__getitem__)
        answer = await stream.ask(records=records)
        assert [each.rule_id for each in answer.rules] == ["c-dns"]
        assert list((await stream.ask(records=records)).rules) == []
        other = Stream(stub.DecideStream())
        assert [each.rule_id for each in (await other.ask(records=records)).rules] == ["b-ssh", "c-dns"]
        stats = await stub.GetStats(pb.GetStatsRequest())
        assert (stats.flows, stats.verdicts["REASON_NEW"]) == (2, 2)


async def test_packets_are_judged_at_the_time_at_which_their_batch_is_read(engine):
    world = World(engine, DNS)
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        await stream.name(DB)
        assert await stream.decide(udp(CLIENT, DB4, 53), udp(CLIENT, DB4, 53)) == [("NEW", "c-dns"), ("ESTABLISHED", "c-dns")]
        world.advance(30)
        assert await stream.decide(udp(CLIENT, DB4, 53)) == [("NEW", "c-dns")]


async def test_quotes_go_with_their_records(engine):
    world = World(engine, ANY_EGRESS)
    opened = [udp(DB4, CLIENT, 53), udp(DB4, CLIENT, 54)]
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        await stream.name(DB)
        await stream.decide(*opened)
        foreign = error_about(udp(DB4, CLIENT, 55))
        assert [reason for reason, _ in await stream.decide(error_about(opened[1]), foreign, error_about(opened[0]))] == [
            "RELATED",
            "NO_RULE",
            "RELATED",
        ]


async def test_servers_come_and_go_while_a_stream_is_open(engine):
    world = World(engine, SSH)
    at_web = tcp(CLIENT, "10.0.0.5", 22)
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        assert [bool(handle) for handle in await stream.name(WEB, DB, "", "p/x/y")] == [False, True, False, False]
        assert await stream.decide(at_web) == [("UNKNOWN_SERVER", "")]
        world.bind(WEB, "db")
        (first,) = await stream.name(WEB)
        assert await stream.decide(at_web) == [("NEW", "b-ssh")]
        world.apply(removed_servers=(WEB,))
        assert await stream.decide(at_web) == [("UNKNOWN_SERVER", "")]
        world.bind("p/next", "db", addresses=("10.0.0.5",))
        (following,) = await stream.name("p/next")
        assert following not in (0, first)
        assert await stream.decide(at_web) == [("UNKNOWN_SERVER", "")]
        world.apply(removed_servers=("p/next",))
        world.bind(WEB, "db")
        assert await stream.decide(at_web) == [("UNKNOWN_SERVER", "")]
        await stream.name(WEB)
        assert await stream.decide(at_web) == [("NEW", "b-ssh")]


async def test_a_change_between_two_batches_decides_about_the_second(engine):
    world = World(engine, SSH)
    syn = tcp(CLIENT, DB4, 22)
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        await stream.name(DB)
        assert await stream.decide(syn) == [("NEW", "b-ssh")]
        world.set_rules(DNS)
        assert await stream.decide(reply(syn, tcp_flags=SYN_ACK), syn) == [("REVOKED", "b-ssh"), ("NO_RULE", "")]
        world.set_rules(rule("y-ssh", Direction.INGRESS, TCP, 22))
        assert await stream.decide(syn) == [("NEW", "y-ssh")]


async def test_one_request_may_name_servers_and_carry_packets_and_an_empty_one_gets_an_empty_answer(engine):
    world = World(engine, SSH)
    handle = world.firewall.server_handle(DB)
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        answer = await stream.ask(servers=[DB], records=pack(tcp(CLIENT, DB4, 22), handle)[0])
        assert (list(answer.server_handles), len(answer.verdicts)) == ([handle], 8)
        assert (await stream.ask()).ByteSize() == 0


@pytest.mark.parametrize(
    ("field", "description", "request_fields"),
    [
        ("records", "65 bytes, not a multiple of 64", {"records": bytes(65)}),
        ("records", "1048640 bytes, the most allowed is 1048576", {"records": bytes(1_048_640)}),
        ("quotes", "64 bytes, not a multiple of 48", {"records": RECORD, "quotes": bytes(64)}),
        ("quotes", "786480 bytes, the most allowed is 786432", {"records": RECORD, "quotes": bytes(786_480)}),
        ("servers", "4097 of them, the most allowed is 4096", {"servers": ["p/s"] * 4_097}),
    ],
)
async def test_a_request_beyond_a_bound_ends_the_stream_with_the_field_and_the_bound(engine, field, description, request_fields):
    world = World(engine, SSH)
    async with served(world) as stub:
        call = stub.DecideStream()
        await call.write(pb.DecideStreamRequest(**request_fields))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == f"{field}: {description}"
        status = rpc_status.from_call(caught.value)
        assert status is not None
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(bad_request)
        assert (info.reason, info.domain) == ("INVALID_VALUE", "secgroups")
        (violation,) = bad_request.field_violations
        assert (violation.field, violation.description) == (field, description)
        assert not any((await stub.GetStats(pb.GetStatsRequest())).verdicts.values())


async def test_the_largest_request_is_answered(engine):
    world = World(engine)
    count = decide_stream.RECORDS_MAX
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        # Of an unknown server, so that the slow engine is soon done.
        request = {"records": RECORD_BYTES * count * b"\xff", "quotes": bytes(QUOTE_BYTES * count), "servers": ["p/server"] * 4_096}
        answer = await stream.ask(**request)
        assert answer.verdicts == bytes([2, 16, 0, 1, 0, 0, 0, 0]) * count
        assert list(answer.server_handles) == [0] * 4_096


async def test_what_was_told_is_forgotten_at_the_bound_and_told_again(engine, monkeypatch):
    monkeypatch.setattr(decide_stream, "RULES_TOLD_MAX", 2)
    world = World(engine, *(rule(f"r{port}", Direction.INGRESS, TCP, port) for port in (1, 2, 3)))
    async with served(world) as stub:
        stream = Stream(stub.DecideStream())
        await stream.name(DB)
        told = []
        for ports in ((1, 2), (2, 1), (2, 3), (2, 3), (1, 1)):
            packets = [tcp(CLIENT, DB4, port) for port in ports]
            assert [rule_id for _, rule_id in await stream.decide(*packets)] == [f"r{port}" for port in ports]
            told.append(sorted(stream.rules.values()))
        assert told == [["r1", "r2"], ["r1", "r2"], ["r2", "r3"], ["r2", "r3"], ["r1"]]


async def test_a_client_that_sends_ahead_gets_its_answers_in_order(engine):
    world = World(engine, SSH)
    handle = world.firewall.server_handle(DB)
    async with served(world) as stub:
        call = stub.DecideStream()
        for count in range(1, 40):
            await call.write(pb.DecideStreamRequest(records=pack(tcp(CLIENT, DB4, 22), handle)[0] * count))
        await call.done_writing()
        assert [len(answer.verdicts) async for answer in call] == [8 * count for count in range(1, 40)]
        assert await call.code() is grpc.StatusCode.OK
