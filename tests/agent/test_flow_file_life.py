"""An agent that goes down and comes back every few steps gives the verdicts of one that never did."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    FIN_ACK,
    FIRST,
    INGRESS,
    LATER,
    OTHER,
    PING,
    RST,
    SSH,
    SYN,
    SYN_ACK,
    WEB,
    Packet,
    World,
    error_about,
    icmp,
    other,
    packet,
    reply,
    rule,
)
from kept_world import KeptWorld

from secgroups.agent.flow import SCTP, TCP, UDP, Fragment

MORE = "p/more"
BOUNDS = {"flows_max": 9, "server_flows_max": 6, "fragments_max": 4, "tcp_loose_s": 100}
RULES = [
    ANY_EGRESS,
    ANY_INGRESS,
    SSH,
    DNS,
    PING,
    rule("f-web", INGRESS, TCP, (20, 30), "group:web"),
    rule("g-one", INGRESS, UDP, 53, CLIENT),
]
ENDS = {DB: ["10.0.0.9", "2001:db8::9"], WEB: ["10.0.0.5", "2001:db8::5"], MORE: ["10.0.0.7", "10.0.0.9"]}
STEPS = 400


def random_packet(chance: random.Random, said: list[Packet], *, fragments: bool) -> Packet:
    """Return a packet of somebody new, or one that has to do with one of the last."""
    if said and chance.random() < 0.6:
        of = chance.choice(said[-12:])
        flags = chance.choice([SYN, SYN_ACK, ACK, ACK, ACK, FIN_ACK, RST]) if of.protocol == TCP else of.tcp_flags
        if of.fragment is FIRST and chance.random() < 0.6:
            return replace(of, fragment=LATER, source_port=0, destination_port=0, tcp_flags=0)
        made = replace(of, tcp_flags=flags)
        made = reply(made) if chance.random() < 0.5 else made
        if chance.random() < 0.1:
            return replace(error_about(made), fragment=Fragment.NONE)
        return made
    server = chance.choice([DB, DB, WEB, MORE])
    local = chance.choice(ENDS[server])
    remote = CLIENT6 if ":" in local else chance.choice([CLIENT, OTHER])
    source, destination = chance.choice([(remote, local), (local, remote)])
    protocol = chance.choice([TCP, TCP, UDP, UDP, 1, 47, SCTP])
    direction = INGRESS if destination == local else INGRESS.opposite
    if protocol == 1:
        return icmp(source, destination, 128 if ":" in local else 8, icmp_id=chance.randrange(2), at=server, direction=direction)
    if protocol == 47:
        return other(source, destination, 47, at=server, direction=direction)
    made = packet(source, destination, protocol, at=server, direction=direction)
    made = replace(made, source_port=chance.randrange(1, 4), destination_port=chance.choice([22, 53]))
    if protocol == TCP:
        return replace(made, tcp_flags=chance.choice([SYN, SYN, SYN, ACK]))
    if fragments and protocol == UDP and chance.random() < 0.3:
        return replace(made, fragment=FIRST, fragment_id=chance.randrange(6))
    return made


def random_change(chance: random.Random, world: World) -> dict[str, object]:
    """Return an update of rules, members, servers or addresses."""
    match chance.randrange(8):
        case 0 | 1:
            return {"groups": (world.group("db", *chance.sample(RULES, chance.randrange(5))),)}
        case 2 | 3:
            return {"sets": (world.members("web", *chance.sample([CLIENT, OTHER, CLIENT6], chance.randrange(3))),)}
        case 4:
            name = chance.choice([WEB, MORE])
            return {"removed_servers": (name,)}
        case _:
            name = chance.choice([DB, WEB, MORE])
            own = tuple(chance.sample(ENDS[name], chance.randrange(1, 3)))
            return {"servers": (world.binding(name, "db", addresses=own),)}


def told(world: World) -> list[object]:
    """Return all that is to be seen of the flows, but for the numbers of epochs."""
    return sorted((replace(flow, epoch=0) for flow in world.firewall.live(world.now_ns)), key=repr)


def live(path: Path, seed: int, *, judged: bool, **settings: object) -> dict[str, int]:
    """Lead both lives; return how often which verdict came. ``judged``: what the cache holds is what the flows were judged by."""
    chance = random.Random(seed)
    bounds = {**BOUNDS, **settings}
    steady, restless = World("compiled", ANY_EGRESS, DNS, SSH, **bounds), KeptWorld(path, ANY_EGRESS, DNS, SSH, **bounds)
    for world in (steady, restless):
        world.bind(WEB, "db")
    said: list[Packet] = []
    seen: dict[str, int] = {}
    for step in range(STEPS):
        # More than the grain of times of opening.
        pause = chance.choice([0.02, 0.02, 0.02, 0.5, 3, 31])
        change = random_change(chance, steady) if chance.random() < 0.06 else None
        is_down = chance.random() < 0.2
        held = restless.down() if is_down else None
        for world in (steady, restless):
            world.advance(pause)
        if is_down:
            restless.up(held, judged=judged)
            assert (restless.table.refused, restless.table.dropped) == ("", 0)
            assert restless.table.check(restless.now_ns) == []
        if change is not None:
            applied = [world.apply(**change) for world in (steady, restless)]
            if judged:
                # Flows that are over are counted by the one that has not found out.
                assert replace(applied[0], flows_dropped=0) == replace(applied[1], flows_dropped=0)
        asked = random_packet(chance, said, fragments=judged)
        verdicts = [world.decide(asked) for world in (steady, restless)]
        assert verdicts[0] == verdicts[1], f"seed {seed}, step {step}: {asked}"
        if verdicts[0].opened and chance.random() < 0.7:
            answer = reply(asked, tcp_flags=SYN_ACK if asked.tcp_flags == SYN else asked.tcp_flags)
            assert steady.decide(answer) == restless.decide(answer)
        assert told(steady) == told(restless), f"seed {seed}, step {step}"
        if verdicts[0].opened or asked.fragment is FIRST:
            said.append(asked)
        name = verdicts[0].reason.name
        seen[name] = seen.get(name, 0) + 1
    return seen


@pytest.mark.parametrize("judged", [True, False], ids=["judged by the same", "judged again"])
def test_a_life_with_restarts_is_a_life_without(tmp_path: Path, *, judged: bool) -> None:
    seen: dict[str, int] = {}
    for seed in range(12):
        for name, count in live(tmp_path / f"flows-{seed}", seed, judged=judged).items():
            seen[name] = seen.get(name, 0) + count
    # The life is worth living: whatever can be said about flows was said, and often.
    often = {"NEW", "ESTABLISHED", "REVOKED", "NO_RULE", "INVALID_STATE", "RELATED", "TABLE_FULL"}
    assert {name for name in often if seen.get(name, 0) < 10} == set(), seen


def test_so_is_one_with_shards(tmp_path: Path) -> None:
    for seed in range(100, 104):
        live(tmp_path / f"flows-{seed}", seed, judged=True, shards=3, flows_max=30)
