"""What is written to the cache is what is in force, whatever of it was written before."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from secgroups.agent import convert
from secgroups.agent.cache import FILE_NAME, Cache, CachedState
from secgroups.agent.cache_pieces import CHUNK_BYTES, OBJECTS_PER_TURN, Pieces
from secgroups.agent.flow import Direction
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule, Ruleset, RulesetUpdate, ServerBinding
from secgroups.v1 import agent_service_pb2 as pb

NAMES = tuple(f"n{number}" for number in range(3 * OBJECTS_PER_TURN))


def some(chance: random.Random, revision: int, held: Ruleset) -> RulesetUpdate:
    """Return an update of any kind."""
    names = chance.sample(NAMES, 12)
    if chance.random() < 0.1:
        return RulesetUpdate(revision=revision, snapshot=True, groups=tuple(group(name, revision, (22,)) for name in names))
    addresses = frozenset(ip_address(each) for each in chance.sample(["10.0.0.1", "10.0.0.2", "2001:db8::1"], 2))
    patched = [name for name in held.sets if name not in names[2:6]][:1]
    return RulesetUpdate(
        revision=revision,
        sets=tuple(AddressSet(group_id=name, version=revision, members=addresses) for name in names[2:4]),
        set_patches=tuple(
            AddressSetPatch(group_id=name, base_version=held.sets[name].version, version=revision, added=addresses)
            for name in patched
        ),
        groups=tuple(group(name, revision, chance.sample(range(1, 99), 3)) for name in names[6:9]),
        servers=(ServerBinding(server=f"p/{names[9]}", version=revision, addresses=addresses, group_ids=tuple(names[:2])),),
        removed_sets=tuple(names[4:6]),
        removed_groups=(names[10],),
        removed_servers=(f"p/{names[11]}",),
    )


def group(name: str, version: int, ports: Sequence[int]) -> GroupRules:
    remotes = (ip_network("10.0.0.0/8"), "n1", None)
    rules = [
        Rule(id=f"{name}-{port}", direction=Direction.INGRESS, protocol=6, ports=(port, port), remote=remotes[port % 3])
        for port in ports
    ]
    return GroupRules(group_id=name, version=version, name=name, rules=tuple(rules))


@pytest.mark.parametrize("seed", range(5))
def test_after_every_change_the_bytes_say_what_is_in_force(seed: int) -> None:
    chance = random.Random(seed)
    pieces, held = Pieces(), Ruleset()
    for revision in range(1, 60):
        held = held.apply(some(chance, revision, held))
        if chance.random() < 0.5:
            continue
        told = pb.Update.FromString(b"".join(pieces.chunks(held)))
        assert told == convert.whole_update(held)
        assert {each.group_id: convert.address_set(each) for each in told.sets} == held.sets
        assert {each.group_id: convert.group_rules(each) for each in told.groups} == held.groups
        assert {each.server: convert.server_binding(each) for each in told.servers} == held.servers


def test_what_is_written_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    groups = [group(f"n{number}", 1, range(1, 99)) for number in range(600)]
    state = CachedState(store_epoch="e", ruleset=Ruleset(revision=1, groups={each.group_id: each for each in groups}))
    cache = Cache(tmp_path, "a")
    try:
        cache.save(state)
        tracemalloc.start()
        try:
            cache.save(state)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert cache.load() == state
    finally:
        cache.close()
    assert (tmp_path / FILE_NAME).stat().st_size > 6 * CHUNK_BYTES
    assert peak_bytes < 3 * CHUNK_BYTES
