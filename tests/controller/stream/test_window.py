"""Steps that are larger than the window: they flow as the agent receives them, end whatever happens, and are applied whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from stream_world import Agent, Kind, SyncPoint, Update, World, allow, members, mentioned, ops

from secgroups.controller.errors import InvalidError
from secgroups.controller.model import Group
from secgroups.controller.resume import Since
from secgroups.controller.stream_messages import Ack
from secgroups.controller.window import BYTES_MAX, MESSAGES_MAX, Window
from secgroups.v1 import agent_service_pb2 as pb

GROUPS = 40


@pytest.fixture(autouse=True)
def _small_messages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secgroups.controller.channel.CHUNK_BYTES_MAX", 2_000)
        patch.setattr("secgroups.controller.channel.CHUNK_BYTES_MIN", 1_000)
        yield


class Site:
    """An agent that guards a server in each of 40 groups, each of which names 200 peers: about 20 messages."""

    def __init__(self, world: World, messages: int, size_bytes: int) -> None:
        self.world = world
        self.peers = world.group("peers")
        for number in range(100, 300):
            world.server(f"s{number}", "", [self.peers])
        self.groups = [world.group(f"g{number}", allow(number + 1, members(self.peers))) for number in range(GROUPS)]
        for number, group in enumerate(self.groups):
            world.server(f"s{1000 + number}", "a", [group])
        self.agent = Agent(world, "a")
        self.agent.window = pb.Window(messages=messages, bytes=size_bytes)
        self.agent.connect()
        self.joined = 0

    def change(self, group: Group) -> None:
        self.world.rule(group, allow(1_000 + self.world.revision))

    def join(self) -> None:
        self.joined += 1
        self.world.server(f"s{3000 + self.joined}", "", [self.peers])

    def is_right(self) -> bool:
        """Whether the agent holds what another one holds that was told all at once."""
        self.agent.disconnect()
        fresh = Agent(self.world, "a", boot=9).connect()
        fresh.pump()
        fresh.disconnect()
        return self.agent.replica.ruleset == fresh.replica.ruleset


@pytest.mark.parametrize(("least", "messages", "size_bytes"), [(1, 1, 0), (1, 0, 1), (3, 3, 0), (2, 0, 3_000), (16, 0, 0)], ids=str)
def test_a_snapshot_flows_in_windows_and_is_applied_whole(world: World, least: int, messages: int, size_bytes: int) -> None:
    site = Site(world, messages, size_bytes)
    agent, sizes = site.agent, []
    while sent := agent.send():
        sizes.append(sum(isinstance(message, Update) for message in sent))
        assert agent.holds == set()
        agent.apply()
        if agent.holds:
            break
        assert world.lagging() == {"a": "not acknowledged yet"}
        agent.ack()
    assert isinstance(sent[-1], SyncPoint)
    assert set(sizes[:-1]) <= {least}
    assert sum(sizes) >= 17
    assert len(agent.holds) == 2 * GROUPS + 1
    agent.ack()
    assert world.lagging() == {}
    assert site.is_right()


def test_what_waits_is_remembered_by_its_key_alone(world: World) -> None:
    site = Site(world, 1, 0)
    objects = 2 * GROUPS + 1
    site.agent.send()
    assert site.agent.channel.backlog == objects
    for _ in range(3):
        for group in site.groups:
            site.change(group)
        site.join()
    # What was sent counts once more, for it is to be sent again.
    assert objects <= site.agent.channel.backlog <= objects + 5
    site.agent.pump()
    assert site.agent.channel.backlog == 0
    assert site.is_right()


def test_what_changes_while_a_step_is_sent_is_sent_again_in_it_and_the_step_is_of_one_instant(world: World) -> None:
    site = Site(world, 1, 0)
    agent = site.agent
    agent.send()
    agent.apply()
    agent.ack()
    site.join()  # The set was sent, ...
    last = site.groups[-1]
    site.change(last)  # ... this group is yet to come, ...
    world.do(ops.delete_server, server_id="s1000")  # ... and this server too: it is not mentioned at all.
    kinds = [mention for message in agent.pump() for mention in mentioned(message)]
    assert kinds.count(("group", last.id)) == 1
    assert ("patch", site.peers.id) in kinds
    assert ("server", "p/s1000") not in kinds
    assert agent.replica.revision == world.revision
    assert site.is_right()


def test_what_was_sent_and_left_the_span_again_is_taken_back_in_the_same_step(world: World) -> None:
    site = Site(world, 1, 0)
    agent = site.agent
    while not any(mention == ("server", "p/s1000") for message in agent.send() for mention in mentioned(message)):
        agent.apply()
        agent.ack()
    world.do(ops.delete_server, server_id="s1000")
    said = [mention for message in agent.pump() for mention in mentioned(message)]
    assert ("-server", "p/s1000") in said
    world.server("s1000", "a", [site.groups[0]])
    agent.pump()
    assert site.is_right()


@pytest.mark.parametrize(("messages", "size_bytes"), [(1, 0), (0, 1), (2, 0)])
@pytest.mark.parametrize("per_message", [1, 10, GROUPS])
def test_a_snapshot_ends_although_all_of_it_changes_all_the_time(
    world: World, messages: int, size_bytes: int, per_message: int
) -> None:
    site = Site(world, messages, size_bytes)
    agent, rounds = site.agent, 0
    while not agent.holds:
        agent.send()
        agent.apply()
        agent.ack()
        for number in range(per_message):
            site.change(site.groups[(rounds + number) % GROUPS])
        site.join()
        rounds += 1
        assert rounds < 120
    assert agent.replica.revision < world.revision
    agent.pump()
    assert site.is_right()
    assert world.lagging() == {"a": "not connected"} or world.lagging() == {}


def test_a_large_step_after_the_snapshot_flows_in_windows_too(world: World) -> None:
    site = Site(world, 2, 0)
    site.agent.pump()
    before = site.agent.replica.ruleset
    for group in site.groups:
        site.change(group)
    rounds = 0
    while messages := site.agent.send():
        assert len(messages) <= 2
        assert site.agent.replica.ruleset is before
        site.agent.apply()
        site.agent.ack()
        rounds += 1
    assert rounds > 5
    assert not messages
    assert site.is_right()


def test_revisions_within_a_step_that_goes_on_are_not_in_force(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.pump()
    for group in site.groups:
        site.change(group)
    first = world.revision - GROUPS + 1
    site.agent.send()
    site.agent.apply()
    site.agent.ack()
    site.change(site.groups[0])
    assert site.agent.channel.pending_since == first
    assert all(world.lagging(revision) for revision in range(first, world.revision + 1))
    assert world.lagging(first - 1) == {}
    site.agent.pump()
    assert site.agent.channel.pending_since is None
    assert world.lagging() == {}


def test_the_oldest_change_of_an_object_counts_whenever_it_was_marked(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.pump()
    for group in site.groups:
        site.change(group)
    first = world.revision - GROUPS + 1
    site.agent.send()
    channel, last = site.agent.channel, (Kind.GROUP, site.groups[-1].id)
    for revision in (first + 1, first - 3, first):
        channel.mark(last, Since(revision, 1))
    assert channel.pending_since == first - 3
    while channel.pending_since is not None:
        assert channel.pending_since == first - 3
        site.agent.apply()
        site.agent.ack()
        site.agent.send()
    assert site.is_right()


def test_a_step_whose_rest_came_to_nothing_is_ended_all_the_same(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.pump()
    for group in site.groups[:-1]:
        site.change(group)
    rule = world.rule(site.groups[-1], allow(9))
    world.unrule(rule)
    world.server("s2000", "a", [site.groups[0]])
    site.agent.send()
    world.do(ops.delete_server, server_id="s2000")
    *_, last = site.agent.pump()
    assert not last.more
    assert site.agent.channel.pending_since is None
    assert site.is_right()


def test_receipts_count_as_a_sign_of_life(world: World) -> None:
    site = Site(world, 2, 0)
    channel = site.agent.channel
    first, *_ = [message for message in channel.next_messages(world.now_us, 1_000) if isinstance(message, Update)]
    assert channel.oldest_unacknowledged_us == 1_000
    channel.acknowledge(Ack(nonce=0, applied_revision=0, received_nonce=first.nonce), world.now_us, 5_000)
    assert channel.oldest_unacknowledged_us == 5_000
    # The same again, or a bookmark's, is none.
    channel.acknowledge(Ack(nonce=0, applied_revision=0, received_nonce=first.nonce), world.now_us, 9_000)
    channel.acknowledge(Ack(nonce=0, applied_revision=0), world.now_us, 9_000)
    assert channel.oldest_unacknowledged_us == 5_000


def test_an_agent_that_receives_and_never_applies_is_sent_no_more_than_so_many_steps(world: World) -> None:
    site = Site(world, 3, 0)
    site.agent.pump()
    channel, sent = site.agent.channel, []
    for _ in range(50):
        site.change(site.groups[0])
        for message in channel.next_messages(world.now_us, 7_000):
            sent.append(message)
            channel.acknowledge(Ack(nonce=0, applied_revision=0, received_nonce=message.nonce), world.now_us, 8_000)
    assert len(sent) == 3
    assert channel.oldest_unacknowledged_us == 8_000
    channel.acknowledge(Ack(nonce=sent[0].nonce, applied_revision=sent[0].revision), world.now_us, 9_000)
    assert len(channel.next_messages(world.now_us, 9_000)) == 1


def test_a_receipt_for_what_was_not_sent_is_refused(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.send()
    with pytest.raises(InvalidError) as caught:
        site.agent.channel.acknowledge(Ack(nonce=0, applied_revision=0, received_nonce=2), world.now_us)
    assert caught.value.violations[0].field == "ack.received_nonce"


def test_a_move_completes_when_the_step_that_brings_the_server_does(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.pump()
    second = Agent(world, "b")
    second.window = pb.Window(messages=1)
    second.connect()
    for number in range(GROUPS):
        world.move(f"s{1000 + number}", "b")
    rounds = 0
    while not second.holds:
        second.send()
        assert site.agent.pump() == []
        assert len(site.agent.replica.ruleset.servers) == GROUPS
        second.apply()
        second.ack()
        rounds += 1
    assert rounds > 5
    site.agent.pump()
    assert site.agent.holds == set()
    assert len(second.replica.ruleset.servers) == GROUPS


def test_an_agent_in_the_middle_of_its_snapshot_still_guards_what_it_came_with(world: World) -> None:
    site = Site(world, 1, 0)
    site.agent.pump()
    site.agent.disconnect()
    site.agent.replica.distrust()
    site.agent.connect()
    site.agent.send()  # No server is in the first message.
    world.move(f"s{1000 + GROUPS - 1}", "b")
    site.agent.pump()
    assert f"p/s{1000 + GROUPS - 1}" in site.agent.replica.ruleset.servers
    Agent(world, "b").connect().pump()
    site.agent.pump()
    assert f"p/s{1000 + GROUPS - 1}" not in site.agent.replica.ruleset.servers


@pytest.mark.parametrize(
    ("is_open", "messages", "size_bytes", "sent"),
    [
        (True, 0, 0, [1] * (MESSAGES_MAX - 1)),
        (False, 0, 0, [1] * MESSAGES_MAX),
        (False, 1_000, 0, [1] * MESSAGES_MAX),
        (True, 0, 0, [BYTES_MAX - 1]),
        (False, 0, 0, [BYTES_MAX]),
        (False, 0, 1 << 40, [BYTES_MAX]),
        (True, 1, 1, []),
        (False, 1, 0, [0]),
        (True, 0, 1, [0]),
        (False, 0, 1, [1]),
    ],
)
def test_a_window_is_open_up_to_its_bounds(is_open: bool, messages: int, size_bytes: int, sent: list[int]) -> None:
    window = Window(messages, size_bytes)
    for nonce, size in enumerate(sent, start=1):
        window.sent(nonce, size)
    assert window.is_open == is_open
    assert window.received(len(sent)) == bool(sent)
    assert not window.received(len(sent))
    assert window.is_open
    assert window.is_empty


def test_marks_of_a_first_step_take_no_memory_when_it_is_sent(world: World) -> None:
    group = world.group("g")
    servers = 1_000
    for number in range(servers):
        world.server(f"s{number}", "a", [group])
    tracemalloc.start()
    try:
        agent = Agent(world, "a")
        agent.connect()
        agent.pump()
        places = tracemalloc.take_snapshot().statistics("filename")
    finally:
        tracemalloc.stop()
    # Where the marks of a stream's beginning are made.
    (made,) = [each for each in places if each.traceback[0].filename.endswith("secgroups/controller/resume.py")]
    assert made.size < 10 * servers
