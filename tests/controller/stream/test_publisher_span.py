"""An agent is sent what its servers need and nothing else, in the smallest form and a safe order."""

from __future__ import annotations

import pytest
from stream_world import PROJECT, Agent, SyncPoint, Update, Welcome, World, allow, members, mentioned, ops

from secgroups.controller import chunks


def test_a_snapshot_holds_servers_their_groups_and_the_sets_that_these_name(world: World) -> None:
    web, database, other = world.group("web"), world.group("database"), world.group("other")
    world.rule(database, allow(3306, members(web)))
    world.rule(other, allow(22, members(database)))
    world.server("s1", "a", [database])
    world.server("s2", "b", [web])
    first, second, stranger = (Agent(world, name).connect() for name in "abc")
    welcome, update, point = first.pump()
    assert isinstance(welcome, Welcome)
    assert isinstance(update, Update)
    assert update.more
    assert isinstance(point, SyncPoint)
    assert point.snapshot_end
    assert first.holds == {"server/p/s1", f"group/{database.id}", f"set/{web.id}"}
    second.pump()
    assert second.holds == {"server/p/s2", f"group/{web.id}"}
    assert [type(message) for message in stranger.pump()] == [Welcome, SyncPoint]
    assert stranger.holds == set()


def test_a_rule_change_is_one_object_to_each_agent_with_a_member_and_nothing_to_others(world: World) -> None:
    web, other = world.group("web"), world.group("other")
    for number in range(10):
        world.server(f"s{number}", "a", [web])
    world.server("s20", "b", [other])
    first, second = Agent(world, "a").connect(), Agent(world, "b").connect()
    first.pump(), second.pump()
    wakes = second.wakes
    rule = world.rule(web, allow(80))
    assert mentioned(first.step()) == [("group", web.id)]
    world.unrule(rule)
    assert mentioned(first.step()) == [("group", web.id)]
    assert second.pump() == []
    assert second.wakes == wakes


def test_a_server_that_joins_a_large_group_is_a_patch_of_one_address(world: World) -> None:
    web, database = world.group("web"), world.group("database")
    world.rule(database, allow(3306, members(web)))
    for number in range(300):
        world.server(f"s{number}", "", [web])
    world.server("s999", "a", [database])
    agent = Agent(world, "a").connect()
    agent.pump()
    world.server("s300", "b", [web])
    update = agent.step()
    assert mentioned(update) == [("patch", web.id)]
    assert update.set_patches[0].added_ipv4 == bytes([10, 0, 1, 44])
    assert len(agent.replica.ruleset.sets[web.id].members) == 301
    world.do(ops.delete_server, server_id="s7")
    assert agent.step().set_patches[0].removed_ipv4 == bytes([10, 0, 0, 7])


def test_several_changes_of_a_set_become_one_patch_without_what_came_and_went(world: World) -> None:
    web, database = world.group("web"), world.group("database")
    world.rule(database, allow(3306, members(web)))
    for number in range(50):
        world.server(f"s{number}", "", [web])
    world.server("s999", "a", [database])
    agent = Agent(world, "a").connect()
    agent.pump()
    world.server("s60", "", [web])
    world.server("s61", "", [web])
    world.do(ops.delete_server, server_id="s60")
    world.do(ops.delete_server, server_id="s1")
    world.server("s1", "", [web])
    (patch,) = agent.step().set_patches
    assert (patch.added_ipv4, patch.removed_ipv4) == (bytes([10, 0, 0, 61]), b"")
    assert patch.version == world.find_group(web).members_revision


def test_a_set_whose_history_is_forgotten_comes_whole(world: World) -> None:
    web, database = world.group("web"), world.group("database")
    world.rule(database, allow(3306, members(web)))
    for number in range(100):
        world.server(f"s{number}", "", [web])
    world.server("s999", "a", [database])
    agent = Agent(world, "a").connect()
    agent.pump()
    for number in range(100, 180):
        world.server(f"s{number}", "", [web])
    assert mentioned(agent.step()) == [("set", web.id)]
    assert len(agent.replica.ruleset.sets[web.id].members) == 180


def test_changes_that_wait_are_merged_and_what_was_undone_is_not_sent(world: World) -> None:
    web = world.group("web")
    server = world.server("s1", "a", [web])
    agent = Agent(world, "a").connect()
    agent.pump()
    for port in range(20):
        world.rule(web, allow(1000 + port))
    rules = len(agent.step().groups[0].rules)
    assert rules == 20
    world.server("s2", "a", [web])
    world.do(ops.delete_server, server_id="s2")
    assert agent.pump() == []
    assert world.lagging() == {}
    assert agent.replica.ruleset.servers.keys() == {server.key}


@pytest.mark.parametrize("attach_first", [True, False])
def test_what_enters_comes_before_what_needs_it_and_what_leaves_goes_in_reverse(world: World, *, attach_first: bool) -> None:
    old, new, old_remote, new_remote = (world.group(name) for name in ("old", "new", "old-remote", "new-remote"))
    world.rule(old, allow(1, members(old_remote)))
    world.rule(new, allow(1, members(new_remote)))
    world.server("s1", "a", [old])
    agent = Agent(world, "a").connect()
    agent.pump()
    if attach_first:
        world.do(ops.attach_group, server_id="s1", group_id=new.id)
        world.do(ops.detach_group, server_id="s1", group_id=old.id)
    else:
        world.do(ops.set_server_groups, server_id="s1", group_ids=[new.id])
    update = agent.step()
    assert mentioned(update) == [
        ("set", new_remote.id),
        ("group", new.id),
        ("server", "p/s1"),
        ("-group", old.id),
        ("-set", old_remote.id),
    ]
    assert agent.holds == {"server/p/s1", f"group/{new.id}", f"set/{new_remote.id}"}


def test_what_left_the_span_is_sent_again_when_it_enters_again(world: World) -> None:
    web, database = world.group("web"), world.group("database")
    rule = world.rule(database, allow(3306, members(web)))
    world.server("s1", "a", [database])
    world.server("s2", "", [web])
    agent = Agent(world, "a").connect()
    agent.pump()
    world.unrule(rule)
    assert mentioned(agent.step()) == [("group", database.id), ("-set", web.id)]
    world.rule(database, allow(3306, members(web)))
    assert mentioned(agent.step()) == [("set", web.id), ("group", database.id)]


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ([("group", "g")], lambda world, group: world.do(ops.update_group, group_id=group.id, name="renamed")),
        ([], lambda world, group: world.do(ops.update_group, group_id=group.id, description="words")),
        ([], lambda world, _: world.do(ops.update_server, server_id="s1", name="words")),
        ([], lambda world, _: world.group("unused")),
        ([], lambda world, _: world.server("s9", "", [])),
        ([("-server", "p/s1"), ("-group", "g")], lambda world, _: world.do(ops.delete_server, server_id="s1")),
        ([("-server", "p/s1"), ("-group", "g")], lambda world, _: world.move("s1", "")),
    ],
    ids=["rename", "describe", "rename server", "other group", "other server", "delete server", "unguard server"],
)
def test_only_what_alters_verdicts_or_names_is_told(world: World, expected: list[tuple[str, str]], change) -> None:
    group = world.group("web")
    world.server("s1", "a", [group])
    agent = Agent(world, "a").connect()
    agent.pump()
    change(world, group)
    said = [(kind, "g" if name == group.id else name) for message in agent.pump() for kind, name in mentioned(message)]
    assert said == expected
    assert world.lagging() == {}


def test_a_description_of_a_rule_is_not_told(world: World) -> None:
    group = world.group("web")
    rule = world.rule(group, allow(80))
    world.server("s1", "a", [group])
    agent = Agent(world, "a").connect()
    agent.pump()
    world.do(ops.update_rule, rule_id=rule.id, description="words")
    assert agent.pump() == []


def test_a_large_snapshot_comes_in_chunks_and_is_applied_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.channel.CHUNK_BYTES_MAX", 2_000)
    remote = world.group("remote")
    for number in range(400):
        world.server(f"s{number}", "", [remote])
    for number in range(20):
        group = world.group(f"group-{number}", allow(number + 1, members(remote)))
        world.server(f"s{1000 + number}", "a", [group])
    agent = Agent(world, "a").connect()
    _, *updates, point = agent.send()
    assert len(updates) > 5
    assert all(isinstance(update, Update) and update.more for update in updates)
    assert all(len(world.wire.encoded(update)) <= 2_000 for update in updates)
    agent.apply()
    agent.ack()
    assert point.snapshot_end
    assert len(agent.holds) == 41
    assert len(agent.replica.ruleset.sets[remote.id].members) == 400
    assert world.lagging() == {}


def test_a_large_step_ends_with_the_last_chunk_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.channel.CHUNK_BYTES_MAX", 2_000)
    agent = Agent(world, "a").connect()
    agent.pump()
    for number in range(20):
        world.server(f"s{number}", "a", [world.group(f"group-{number}", allow(80))])
    updates = agent.send()
    assert [update.more for update in updates] == [True] * (len(updates) - 1) + [False]
    agent.apply()
    agent.ack()
    assert len(agent.holds) == 40


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (10, 10), (11, 11)])
def test_pieces_are_cut_in_order_and_none_is_lost(count: int, expected: int) -> None:
    pieces = [chunks.AddressSet(group_id=f"g{number}", version=1, ipv4=b"\0" * 800, ipv6=b"") for number in range(count)]
    cut = chunks.cut(pieces, 1_500)
    assert len(cut) == expected
    assert [made.group_id for chunk in cut for made in chunk.sets] == [made.group_id for made in pieces]


def test_after_updates_the_heartbeat_verifies_and_then_only_marks_the_revision(world: World) -> None:
    group = world.group("web")
    world.server("s1", "a", [group])
    agent = Agent(world, "a").connect()
    agent.pump()
    assert [type(message).__name__ for message in agent.beat()] == ["Bookmark"]
    world.rule(group, allow(80))
    assert agent.beat() == []  # What waits is said first.
    agent.pump()
    assert [type(message).__name__ for message in agent.beat()] == ["SyncPoint"]
    agent.apply()
    agent.ack()
    world.group("unused")
    assert [message.revision for message in agent.beat()] == [world.revision]
    agent.apply()
    assert agent.replica.revision == world.revision
    assert agent.replica.ruleset.groups.keys() == {group.id}


def test_projects_never_meet(world: World) -> None:
    mine = world.group("web")
    world.server("s1", "a", [mine], "10.0.0.1")
    agent = Agent(world, "a").connect()
    agent.pump()
    (result,) = world.store.commit([_other_project()])
    world.state.apply(result.changes)
    world.publisher.changed(result.changes)
    assert mentioned(agent.step())[-1] == ("server", "q/s1")
    assert {held.addresses for held in agent.replica.ruleset.servers.values()} == {frozenset(result.value.addresses)}
    assert agent.replica.ruleset.servers[f"{PROJECT}/s1"].group_ids != agent.replica.ruleset.servers["q/s1"].group_ids


def _other_project():
    from ipaddress import ip_address

    from secgroups.controller.store.interface import Pending

    return Pending(
        lambda tx: ops.create_server(
            tx, project="q", server_id="s1", name="", addresses=[ip_address("10.0.0.1")], agent_id="a", group_ids=[]
        )
    )
