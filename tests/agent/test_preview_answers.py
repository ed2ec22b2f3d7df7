"""The agent's answers to previews: what it can't count it says so, and it counts only so many at one time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from agent_world import ACK, ANY_INGRESS, CLIENT, DB, DNS, SSH, World, tcp

from secgroups.agent.preview_answers import PREVIEWS_MAX, PreviewAnswers
from secgroups.v1 import agent_service_pb2 as pb

MINE = "10.0.0.9"
NO_RULES = pb.Update(groups=[pb.GroupRules(group_id="db", version=9)])
OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED = 0, 4, 8, 9, 12


class Asker:
    """The other end of the stream: keeps what is answered."""

    def __init__(self, world: World) -> None:
        self.results: list[pb.PreviewResult] = []
        self.answers = PreviewAnswers(world.firewall, lambda: world.now_ns)
        self._came = asyncio.Event()

    async def _say(self, message: pb.SubscribeRequest) -> None:
        self.results.append(message.preview_result)
        self._came.set()

    async def ask(self, preview_id: int, update: pb.Update, timeout_s: float = 0) -> None:
        request = pb.PreviewRequest(id=preview_id, update=update)
        request.timeout.FromNanoseconds(round(timeout_s * 1e9))
        await self.answers.take(request, self._say)

    async def hear(self, count: int = 1) -> list[pb.PreviewResult]:
        async with asyncio.timeout(20):
            while len(self.results) < count:
                self._came.clear()
                await self._came.wait()
        return self.results


def with_field_of_the_future() -> pb.Update:
    update = pb.Update()
    update.ParseFromString(NO_RULES.SerializeToString() + b"\x82\x7d\x01x")  # Field 2000, one byte.
    return update


@pytest.mark.parametrize(
    ("flows_cut", "code", "update"),
    [
        (1, OK, NO_RULES),
        (1, OK, pb.Update(removed_servers=[DB])),
        (1, OK, pb.Update(servers=[pb.ServerBinding(server=DB, group_ids=["db"])])),
        (0, OK, pb.Update()),
        (0, OK, pb.Update(removed_servers=["p/nobody"])),
        (0, UNIMPLEMENTED, with_field_of_the_future()),
        (0, UNIMPLEMENTED, pb.Update(groups=[pb.GroupRules(group_id="db", rules=[pb.PolicyRule(id="r")])])),
        (0, UNIMPLEMENTED, pb.Update(servers=[pb.ServerBinding(server=DB, ipv4=b"123")])),
        (0, FAILED_PRECONDITION, pb.Update(set_patches=[pb.AddressSetPatch(group_id="web", base_version=3, version=4)])),
    ],
)
async def test_it_answers_each_with_a_count_or_a_reason(flows_cut: int, code: int, update: pb.Update) -> None:
    world = World("reference", SSH)
    world.connect(tcp(CLIENT, MINE, 22))
    asker = Asker(world)
    await asker.ask(7, update)
    (result,) = await asker.hear()
    assert (result.id, result.flows_cut, result.code) == (7, flows_cut, code)
    assert bool(result.message) == (code != OK)
    assert result.revision == (world.revision if code == OK else 0)
    assert world.reasons(replace(tcp(CLIENT, MINE, 22), tcp_flags=ACK)) == ["ESTABLISHED"]


def crowded() -> World:
    """More flows than one slice of a count takes."""
    world = World("reference", ANY_INGRESS)
    for port in range(1, 10_001):
        world.firewall.decide(tcp(CLIENT, MINE, port), world.now_ns)
    return world


async def test_verdicts_go_on_while_it_counts_and_more_than_so_many_are_refused() -> None:
    world = crowded()
    asker = Asker(world)
    for number in range(1, PREVIEWS_MAX + 3):
        await asker.ask(number, NO_RULES, timeout_s=30)
    assert [(each.id, each.code) for each in asker.results] == [
        (PREVIEWS_MAX + 1, RESOURCE_EXHAUSTED),
        (PREVIEWS_MAX + 2, RESOURCE_EXHAUSTED),
    ]
    decided = 0
    while len(asker.results) < PREVIEWS_MAX + 2:
        assert world.reasons(tcp(MINE, CLIENT, 443)) == ["NO_RULE"]
        decided += 1
        await asyncio.sleep(0)
    assert decided > 5
    assert [each.flows_cut for each in asker.results[2:]] == [10_000] * PREVIEWS_MAX
    await asker.ask(99, NO_RULES, timeout_s=30)
    assert (await asker.hear(PREVIEWS_MAX + 3))[-1].id == 99


async def test_it_gives_up_when_nobody_waits_any_more() -> None:
    asker = Asker(crowded())
    await asker.ask(1, NO_RULES, timeout_s=0.001)
    (result,) = await asker.hear()
    assert (result.code, result.flows_cut, result.message) == (DEADLINE_EXCEEDED, 0, "not counted within 0.001 s")


async def test_the_end_of_the_stream_ends_what_is_counted() -> None:
    world = crowded()
    asker = Asker(world)
    for number in range(PREVIEWS_MAX):
        await asker.ask(number, NO_RULES, timeout_s=30)
    await asyncio.sleep(0)
    asker.answers.close()
    await asyncio.sleep(0)
    await asker.ask(50, pb.Update(groups=[pb.GroupRules(group_id="other", version=1)]))
    assert [each.id for each in await asker.hear()] == [50]


async def test_a_change_in_the_middle_of_a_count_does_not_disturb_it() -> None:
    world = crowded()
    asker = Asker(world)
    await asker.ask(1, NO_RULES, timeout_s=30)
    await asyncio.sleep(0)
    revision = world.revision
    world.set_rules(DNS)
    (result,) = await asker.hear()
    assert (result.revision, result.flows_cut) == (revision, 10_000)
