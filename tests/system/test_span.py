"""Each change is told to the agents that it concerns, as what it is, and to no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address

import pytest
from raw_agent import RawAgent, raw_agent
from running_system import System, wait_until

from secgroups.v1 import agent_service_pb2 as agents_pb

AGENTS = ("h1", "h2", "h3")
# A group of this many addresses, made of servers with as many as may be.
MEMBERS, ADDRESSES_MAX = 10_000, 32


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system()


@pytest.fixture
def site(shared: System) -> System:
    shared.renew_project()
    return shared


@pytest.fixture
def agents(site: System) -> Iterator[dict[str, RawAgent]]:
    """Three agents that guard nothing yet."""
    with ExitStack() as stack:
        made = {agent_id: stack.enter_context(raw_agent(site, agent_id)) for agent_id in AGENTS}
        wait_until(lambda: all(site.agent_is_in_sync(agent_id) for agent_id in AGENTS), "all are in sync")
        yield made


def addresses(packed: bytes) -> list[str]:
    return [str(IPv4Address(packed[at : at + 4])) for at in range(0, len(packed), 4)]


def words(update: agents_pb.Update, names: dict[str, str]) -> list[str]:
    """Return what an update says, a few words for each object in it."""
    return sorted(
        [
            *(f"server {each.server.partition('/')[2]}" for each in update.servers),
            *(f"no server {each.partition('/')[2]}" for each in update.removed_servers),
            *(f"group {names[each.group_id]}" for each in update.groups),
            *(f"no group {names[each]}" for each in update.removed_groups),
            *(f"set {names[each.group_id]} = {' '.join(addresses(each.ipv4))}" for each in update.sets),
            *(f"no set {names[each]}" for each in update.removed_sets),
            *(patch_words(each, names) for each in update.set_patches),
        ]
    )


def patch_words(patch: agents_pb.AddressSetPatch, names: dict[str, str]) -> str:
    changes = [f"-{each}" for each in addresses(patch.removed_ipv4)] + [f"+{each}" for each in addresses(patch.added_ipv4)]
    return f"set {names[patch.group_id]}: {' '.join(changes)}"


def test_every_kind_of_change_touches_only_the_agents_concerned(site: System, agents: dict[str, RawAgent]) -> None:
    web, db, lone = site.group("web"), site.group("db", 5432), site.group("lone", 22)
    names = {web: "web", db: "db", lone: "lone"}
    to_db = site.rule(web, 5432, remote_group_id=db)
    # Members that nobody guards: a set that is smaller than what changes of it is sent whole.
    bulk = [f"10.0.9.{number}" for number in range(8)]
    site.server("bulk", bulk[0], "", db, more_addresses=bulk[1:])
    # What is done, and what each agent is then told. In web a rule names db as remote; h1 guards its only server.
    steps: list[tuple[Callable[[], object], dict[str, list[str]]]] = [
        (lambda: site.server("w1", "10.0.0.1", "h1", web), {"h1": ["group web", "server w1", f"set db = {' '.join(bulk)}"]}),
        (
            lambda: site.server("d2", "10.0.0.2", "h2", db),
            {"h1": ["set db: +10.0.0.2"], "h2": ["group db", "server d2"]},
        ),
        (lambda: site.server("l3", "10.0.0.3", "h3", lone), {"h3": ["group lone", "server l3"]}),
        (lambda: site.attach("l3", db), {"h1": ["set db: +10.0.0.3"], "h3": ["group db", "server l3"]}),
        (lambda: site.attach("l3", db), {}),  # Attached it was.
        (lambda: site.detach("l3", db), {"h1": ["set db: -10.0.0.3"], "h3": ["no group db", "server l3"]}),
        (
            lambda: site.readdress("d2", "10.0.0.2", "10.0.0.20"),
            {"h1": ["set db: +10.0.0.20"], "h2": ["server d2"]},
        ),
        (lambda: site.readdress("d2", "10.0.0.22"), {"h1": ["set db: -10.0.0.2 -10.0.0.20 +10.0.0.22"], "h2": ["server d2"]}),
        (lambda: site.rule(lone, 443), {"h3": ["group lone"]}),
        (lambda: site.group("unused", 1), {}),
        (lambda: site.server("n0", "10.0.0.30", "", lone), {}),  # Guarded by nobody, and lone is nobody's remote.
        (lambda: site.move("d2", "h3"), {"h2": ["no group db", "no server d2"], "h3": ["group db", "server d2"]}),
        (lambda: site.rule(db, 5433), {"h3": ["group db"]}),
        (lambda: site.delete_rule(to_db), {"h1": ["group web", "no set db"]}),
        (lambda: site.delete_server("d2"), {"h3": ["no group db", "no server d2"]}),
        (lambda: site.delete_server("w1"), {"h1": ["no group web", "no server w1"]}),
        # Touches all: whatever would have come late has come before it.
        (
            lambda: [site.server(f"z{agent_id}", f"10.0.1.{number}", agent_id, lone) for number, agent_id in enumerate(AGENTS)],
            {"h1": ["group lone", "server zh1"], "h2": ["group lone", "server zh2"], "h3": ["server zh3"]},
        ),
    ]
    for number, (change, expected) in enumerate(steps):
        heard = {agent_id: len(agent.updates) for agent_id, agent in agents.items()}
        change()
        assert site.wait_in_force().in_force
        wait_until(lambda: all(site.agent_is_in_sync(agent_id) for agent_id in AGENTS), "who is let go has heard so")
        told = {
            agent_id: said
            for agent_id, agent in agents.items()
            if (said := [word for update in agent.updates[heard[agent_id] :] for word in words(update, names)])
        }
        assert told == expected, f"step {number}"
    assert {agent_id: agent.ended for agent_id, agent in agents.items()} == dict.fromkeys(AGENTS, "")


def test_one_member_more_of_a_group_of_10_000_is_one_patch_of_one_address(site: System, agents: dict[str, RawAgent]) -> None:
    crowd, web = site.group("crowd"), site.group("web")
    site.rule(web, 80, remote_group_id=crowd)
    members = [str(IPv4Address("10.1.0.0") + number) for number in range(MEMBERS)]
    batches = [members[at : at + ADDRESSES_MAX] for at in range(0, MEMBERS, ADDRESSES_MAX)]
    with ThreadPoolExecutor(16) as pool:
        made = pool.map(lambda batch: site.server(f"m{batch[0]}", batch[0], "", crowd, more_addresses=batch[1:]), batches)
        assert len(list(made)) == len(batches)
    # Two servers on h1, one on h2: an object goes once to each agent that needs it, however many of its servers do.
    for server_id, address, agent_id in (("w1", "10.0.0.1", "h1"), ("w2", "10.0.0.2", "h1"), ("w3", "10.0.0.3", "h2")):
        site.server(server_id, address, agent_id, web)
    assert site.wait_in_force().in_force
    for agent_id in ("h1", "h2"):
        whole = [each for update in agents[agent_id].updates for each in update.sets if each.group_id == crowd]
        assert sorted(address for each in whole for address in addresses(each.ipv4)) == sorted(members)
    heard = {agent_id: len(agent.updates) for agent_id, agent in agents.items()}
    site.server("one-more", "10.9.9.9", "h3", crowd)
    assert site.wait_in_force().in_force
    for agent_id in ("h1", "h2"):
        (update,) = agents[agent_id].updates[heard[agent_id] :]
        assert words(update, {crowd: "crowd"}) == ["set crowd: +10.9.9.9"]
        assert update.ByteSize() <= 300
    # The new member itself is told the rules of its group, and none of the other members: no rule of it names them.
    (update,) = agents["h3"].updates[heard["h3"] :]
    assert words(update, {crowd: "crowd"}) == ["group crowd", "server one-more"]
