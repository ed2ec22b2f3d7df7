"""A large model in a database file, as years of use leave it: made through the real store, one revision for each change.

Projects of 500 groups; of a group's rules some name other groups as remote; servers are in two to four groups, half of the places
in a few large ones (what all servers of a tenant share), and are spread over agents of 32 servers whatever their project; one in
fifty was moved to another agent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import islice
from pathlib import Path
from typing import Any

from secgroups.controller import operations
from secgroups.controller.model import ANYWHERE, ICMP, TCP, UDP, Direction, GroupRemote, Remote, RuleSpec
from secgroups.controller.store.interface import Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore

GROUPS_PER_PROJECT = 500
SERVERS_PER_AGENT = 32
LARGE_GROUPS = 10
MOVED_EVERY = 50
# Every group is born with two rules.
BORN_RULES = 2
# What ``fill_site`` makes.
SITE_PROJECT = "site"
SITE_AGENT = "site"
SITE_SERVERS = 50
SITE_GROUPS = 200
SITE_RULES = 20
CROWD = 10_000
WATCHER = "watcher"
# A server that joins the large group and leaves it.
JOINING = "joining"
BATCH = 128
SEED = 7

Operation = Callable[[Transaction], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much there is. The groups of a project share its servers and rules evenly."""

    servers: int
    groups: int
    rules: int

    @property
    def projects(self) -> int:
        return max(1, self.groups // GROUPS_PER_PROJECT)


def fill(path: Path, size: Size) -> None:
    """Make the database file ``path``. The same size gives the same model but for ids and times."""
    store = SqliteStore(path, durable=False)
    try:
        agents = [f"hypervisor-{number // SERVERS_PER_AGENT:05}" for number in range(size.servers)]
        random.Random(SEED).shuffle(agents)
        for number in range(size.projects):
            project = f"project-{number:03}"
            # Of its own, so that a project is the same in a larger model.
            random_ = random.Random(f"{SEED} {number}")
            group_ids = _commit(store, _groups(project, size.groups // size.projects))
            _commit(store, _rules(project, group_ids, size.rules // size.groups - BORN_RULES, random_))
            share = range(number * size.servers // size.projects, (number + 1) * size.servers // size.projects)
            server_ids = _commit(store, _servers(project, group_ids, [(each, agents[each]) for each in share], random_))
            _commit(store, _moves(project, server_ids, agents, random_))
    finally:
        store.close()


def fill_site(path: Path) -> None:
    """Make the database file of one agent's site: 50 servers in 200 groups of 20 rules, every second group naming that of 10,000.

    No agent guards the members of that group, each is in one of the 200 groups too, and those name one another as remotes. A
    server of agent ``watcher`` needs the large group and little else.
    """
    store = SqliteStore(path, durable=False)
    try:
        random_ = random.Random(SEED)
        default, crowd, watched, *roles = _commit(store, _groups(SITE_PROJECT, SITE_GROUPS + 3))
        _commit(store, _site_rules(crowd, roles, random_))
        _commit(store, iter([_naming(watched, crowd)]))
        each = SITE_GROUPS // SITE_SERVERS
        _commit(store, (_server(f"crowd-{at:05}", at, "", [crowd, roles[at % len(roles)]]) for at in range(CROWD)))
        own = [(CROWD + at, roles[at * each : (at + 1) * each]) for at in range(SITE_SERVERS)]
        _commit(store, (_server(f"own-{at:05}", at, SITE_AGENT, group_ids) for at, group_ids in own))
        _commit(store, iter([_server("watched", CROWD + SITE_SERVERS, WATCHER, [watched])]))
        _commit(store, iter([_server(JOINING, CROWD + SITE_SERVERS + 1, "", [default])]))
    finally:
        store.close()


def _naming(group_id: str, remote: str) -> Operation:
    spec = RuleSpec(direction=Direction.INGRESS, protocol=TCP, ports=(5432, 5432), remote=GroupRemote(remote))
    return partial(operations.create_rules, project=SITE_PROJECT, group_id=group_id, specs=[spec], bulk=False)


def _site_rules(crowd: str, roles: list[str], random_: random.Random) -> Iterator[Operation]:
    networks = [IPv4Network((random_.getrandbits(32) >> 12 << 12, 20)) for _ in range(200)]
    for number, group_id in enumerate(roles):
        specs = [_spec(at, roles, networks, random_) for at in range(SITE_RULES - BORN_RULES - number % 2)]
        yield partial(operations.create_rules, project=SITE_PROJECT, group_id=group_id, specs=specs, bulk=True)
        if number % 2:
            yield _naming(group_id, crowd)


def _server(server_id: str, number: int, agent_id: str, group_ids: list[str]) -> Operation:
    return partial(
        operations.create_server,
        project=SITE_PROJECT,
        server_id=server_id,
        addresses=[IPv4Address(0x0A000000 + number)],
        agent_id=agent_id,
        group_ids=sorted(group_ids),
    )


def _commit(store: SqliteStore, wanted: Iterator[Operation]) -> list[str]:
    """Run every operation in a revision of its own; return the ids of what they made, if that is an object each."""
    ids: list[str] = []
    while batch := [Pending(each) for each in islice(wanted, BATCH)]:
        for result in store.commit(batch):
            if isinstance(result, Exception):
                raise result
            ids.append(getattr(result.value, "id", ""))
    return ids


def _groups(project: str, count: int) -> Iterator[Operation]:
    yield partial(operations.ensure_default_group, project=project)
    for number in range(count - 1):
        yield partial(operations.create_group, project=project, name=f"role-{number:03}", description="made for a measurement")


def _rules(project: str, group_ids: list[str], count: int, random_: random.Random) -> Iterator[Operation]:
    networks = [IPv4Network((random_.getrandbits(32) >> 12 << 12, 20)) for _ in range(200)]
    for group_id in group_ids:
        specs = [_spec(number, group_ids, networks, random_) for number in range(count)]
        yield partial(operations.create_rules, project=project, group_id=group_id, specs=specs, bulk=True)


def _spec(number: int, group_ids: list[str], networks: list[IPv4Network], random_: random.Random) -> RuleSpec:
    """Return a rule that no other number gives: by turns from a group, from a prefix, from anywhere, and a ping."""
    kind = number % 8
    remote: Remote = random_.choice(networks)
    if kind in (0, 1, 4):
        remote = GroupRemote(random_.choice(group_ids))
    elif kind == 7:
        remote = ANYWHERE
    if kind == 6:
        return RuleSpec(direction=Direction.INGRESS, protocol=ICMP, icmp_type=8, icmp_code=number % 256, remote=remote)
    first = 1 + random_.randrange(1_000) + 1_000 * (number % 60)
    ports = (first, first + random_.choice((0, 0, 0, 9)))
    direction = Direction.EGRESS if kind == 5 else Direction.INGRESS
    return RuleSpec(direction=direction, protocol=UDP if kind == 3 else TCP, ports=ports, remote=remote)


def _servers(project: str, group_ids: list[str], placed: list[tuple[int, str]], random_: random.Random) -> Iterator[Operation]:
    for number, agent_id in placed:
        chosen: set[str] = set()
        for _ in range(random_.choice((2, 3, 3, 4))):
            chosen.add(random_.choice(group_ids[:LARGE_GROUPS] if random_.random() < 0.5 else group_ids))
        addresses: list[IPv4Address | IPv6Address] = [IPv4Address(0x0A000000 + number)]
        if number % 10 == 0:
            addresses.append(IPv6Address((0x2001_0DB8 << 96) + number))
        yield partial(
            operations.create_server,
            project=project,
            server_id=f"{random_.getrandbits(128):032x}",
            name=f"server-{number:06}",
            addresses=addresses,
            agent_id=agent_id,
            group_ids=sorted(chosen),
        )


def _moves(project: str, server_ids: list[str], agents: list[str], random_: random.Random) -> Iterator[Operation]:
    for server_id in server_ids[::MOVED_EVERY]:
        yield partial(operations.update_server, project=project, server_id=server_id, agent_id=random_.choice(agents))
