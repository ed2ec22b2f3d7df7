"""Patches between versions of a set: always what turns one into the other, made once, and bounded."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from stream_world import Agent, World, allow, members, mentioned

from secgroups.controller import set_history
from secgroups.controller.set_history import SetHistory, pack
from secgroups.controller.stream_messages import AddressSetPatch

A, B, C = (ip_address(f"10.0.0.{number}") for number in (1, 2, 3))
SIX = ip_address("fd00::1")


def applied(patch: AddressSetPatch, members: set) -> set:
    """Return the members after a patch, as an agent makes them."""
    added, removed = (
        {ip_address(data[at : at + size]) for data, size in pairs for at in range(0, len(data), size)}
        for pairs in (((patch.added_ipv4, 4), (patch.added_ipv6, 16)), ((patch.removed_ipv4, 4), (patch.removed_ipv6, 16)))
    )
    return (members | added) - removed


@pytest.mark.parametrize(
    ("added", "removed", "notes"),
    [
        ({A}, set(), [(2, {A}, set())]),
        ({A, SIX}, {B}, [(2, {A, SIX}, {B})]),
        ({A, B}, set(), [(2, {A}, set()), (3, {B}, set())]),
        (set(), set(), [(2, {A}, set()), (3, set(), {A})]),
        (set(), set(), [(2, set(), {A}), (3, {A}, set())]),
        ({A}, set(), [(2, {A}, set()), (3, set(), {A}), (4, {A}, set())]),
        # Several servers in one revision: two swap what they have, one takes over from another that moves on.
        (set(), set(), [(2, {B}, {A}), (2, {A}, {B})]),
        ({C}, {A}, [(2, {B}, {A}), (2, {C}, {B})]),
        ({C}, set(), [(2, {A}, set()), (3, {B}, {A}), (3, {C}, {B})]),
    ],
)
def test_a_patch_is_the_sum_of_its_steps(added: set, removed: set, notes: list[tuple]) -> None:
    history = SetHistory()
    history.begin("g", 1)
    for version, come, gone in notes:
        history.note("g", version, added=come, removed=gone)
    patch = history.find_patch("g", 1, notes[-1][0])
    assert (patch.added_ipv4, patch.added_ipv6) == (pack(added, 4), pack(added, 6))
    assert (patch.removed_ipv4, patch.removed_ipv6) == (pack(removed, 4), pack(removed, 6))


def test_a_step_within_one_revision_does_not_spoil_the_patch_that_follows() -> None:
    history = SetHistory()
    history.begin("g", 1)
    history.note("g", 2, added={A}, removed=set())
    history.note("g", 2, added={B}, removed=set())
    history.note("g", 3, added=set(), removed={B})
    assert applied(history.find_patch("g", 2, 3), {A, B}) == {A}
    assert applied(history.find_patch("g", 1, 3), set()) == {A}


@pytest.mark.parametrize("seed", range(20))
def test_every_patch_turns_one_version_into_the_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(set_history, "CHANGES_PER_SET_MAX", chance.choice([3, 10]))
    monkeypatch.setattr(set_history, "ADDRESSES_PER_SET_MAX", chance.choice([8, 30]))
    monkeypatch.setattr(set_history, "CHANGES_MAX", chance.choice([5, 40]))
    monkeypatch.setattr(set_history, "PATCHES_READY_MAX", chance.choice([2, 100]))
    history, now, version = SetHistory(), set(), 1
    history.begin("g", version)
    past = {version: set()}
    for _ in range(60):
        version += chance.choice([0, 1, 1, 1, 3]) if version > 1 else 1
        come = {ip_address(f"10.0.0.{chance.randrange(12)}") for _ in range(chance.randrange(4))} - now
        gone = set(chance.sample(sorted(now), chance.randrange(len(now) + 1))) if now else set()
        history.note("g", version, added=come, removed=gone)
        history.note("h", version, added=come, removed=gone)
        now = (now | come) - gone
        past[version] = set(now)
        found = {base: history.find_patch("g", base, version) for base in past if base != version}
        assert all(applied(patch, past[base]) == now for base, patch in found.items() if patch)
        assert sum(patch is not None for patch in found.values()) <= 10
        assert len(history._order) <= 40


def test_what_is_not_known_has_no_patch() -> None:
    history = SetHistory()
    history.begin("g", 5)
    history.note("g", 7, added={A}, removed=set())
    assert history.find_patch("g", 5, 7) is not None
    assert [history.find_patch("g", base, 7) for base in (1, 4, 6)] == [None, None, None]
    assert history.find_patch("g", 5, 6) is None
    assert history.find_patch("h", 5, 7) is None
    history.forget("g")
    assert history.find_patch("g", 5, 7) is None


def test_a_patch_is_made_once_for_all_agents_that_have_the_same_version(world: World) -> None:
    web, peers = world.group("web"), world.group("peers")
    world.rule(web, allow(1, members(peers)))
    for number in range(100, 300):
        world.server(f"s{number}", "", [peers])
    agents = []
    for number in range(20):
        world.server(f"s{number}", f"a{number}", [web])
        agents.append(Agent(world, f"a{number}").connect())
        agents[-1].pump()
    for joined in range(1_000, 1_100):
        world.server(f"s{joined}", "", [peers])
    first, *others = [agent.step() for agent in agents]
    assert mentioned(first) == [("patch", peers.id)]
    assert len(first.set_patches[0].added_ipv4) == 4 * 100
    assert all(other.set_patches[0] is first.set_patches[0] for other in others)
