"""What of a file can't be done to a project as it is. Pure; every problem is a line that begins with where the file says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from secgroups.cli.manifest.model import GroupEntry, ServerEntry
from secgroups.cli.manifest.present import Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the file says, groups called by their names, and what --prune deletes."""

    groups: Mapping[str, GroupEntry]
    servers: Mapping[str, ServerEntry]
    lost_groups: frozenset[str]
    lost_servers: frozenset[str]


def problems(wish: Wish, present: Present) -> list[str]:
    """Return everything that can't be done."""
    return [
        *_ids_as_names(wish, present),
        *_unknown_groups(wish, present),
        *_said_twice(wish),
        *_servers_without_address(wish, present),
        *_shared_addresses(wish, present),
        *_exchanged_addresses(wish, present),
        *_users_of_lost_groups(wish, present),
    ]


def order_of_moves(addresses: Mapping[str, tuple[str, ...]], present: Present) -> list[str]:
    """Return the servers that are to have ``addresses``, who takes one after who gives it up. CycleError for an exchange."""
    owners = {address: server.id for server in present.servers.values() for address in server.addresses}
    graph = {
        server_id: {owners[address] for address in wanted if address in owners} - {server_id}
        for server_id, wanted in sorted(addresses.items())
    }
    return [server_id for server_id in TopologicalSorter(graph).static_order() if server_id in addresses]


def _ids_as_names(wish: Wish, present: Present) -> Iterator[str]:
    names = {group.id: group.name for group in present.groups.values()}
    for entry in wish.groups.values():
        if entry.name in names and entry.name not in present.groups:
            yield f"{entry.where}: {entry.name} is the id of group {names[entry.name]}: list it by its name"


def _unknown_groups(wish: Wish, present: Present) -> Iterator[str]:
    known = {*wish.groups, *present.groups}
    for entry in wish.groups.values():
        for rule in entry.rules or ():
            if rule.remote.kind == "group" and rule.remote.value not in known:
                yield f"{entry.where}: group {entry.name}: {rule.text}: there is no such group in the file or the project"
    for server in wish.servers.values():
        for name in server.groups or ():
            if name not in known:
                yield f"{server.where}: server {server.id}: there is no group {name!r} in the file or the project"


def _said_twice(wish: Wish) -> Iterator[str]:
    """Yield what is said once by the name of a group and once by its id; other repeats were found when the file was read."""
    for entry in wish.groups.values():
        rules = Counter(rule.identity for rule in entry.rules or ())
        texts = {rule.identity: rule.text for rule in entry.rules or ()}
        yield from (f"{entry.where}: group {entry.name}: {texts[rule]} stands twice" for rule, count in rules.items() if count > 1)
    for server in wish.servers.values():
        names = Counter(server.groups or ())
        yield from (f"{server.where}: server {server.id}: group {name} stands twice" for name, count in names.items() if count > 1)


def _servers_without_address(wish: Wish, present: Present) -> Iterator[str]:
    for entry in wish.servers.values():
        if entry.id not in present.servers and not entry.addresses:
            yield f"{entry.where}: server {entry.id} is not there yet: give its addresses, so that it can be created"


def _shared_addresses(wish: Wish, present: Present) -> Iterator[str]:
    """Yield the addresses that two servers would have."""
    owners: dict[str, str] = {}
    for server in present.servers.values():
        listed = server.id in wish.servers and wish.servers[server.id].addresses is not None
        if not listed and server.id not in wish.lost_servers:
            owners.update(dict.fromkeys(server.addresses, server.id))
    for entry in wish.servers.values():
        for address in entry.addresses or ():
            if owners.setdefault(address, entry.id) != entry.id:
                yield f"{entry.where}: server {entry.id}: address {address} belongs to server {owners[address]}"


def _exchanged_addresses(wish: Wish, present: Present) -> Iterator[str]:
    wanted = {entry.id: entry.addresses for entry in wish.servers.values() if entry.addresses and entry.id in present.servers}
    try:
        order_of_moves(wanted, present)
    except CycleError as error:
        exchanging = sorted(set(error.args[1]))
        where = wish.servers[exchanging[0]].where
        yield f"{where}: servers {' and '.join(exchanging)} exchange addresses: give one of them another address first"


def _users_of_lost_groups(wish: Wish, present: Present) -> Iterator[str]:
    """Yield who would still use a group that --prune deletes."""
    if not wish.lost_groups:
        return
    attached = {server.id: server.groups for server in present.servers.values() if server.id not in wish.lost_servers}
    attached.update((entry.id, entry.groups) for entry in wish.servers.values() if entry.groups is not None)
    for server_id, names in sorted(attached.items()):
        for name in names:
            if name in wish.lost_groups:
                yield f"group {name} is not in the file, but server {server_id} would still be attached to it"
    rules = {group.name: group.rules for group in present.groups.values() if group.name not in wish.lost_groups}
    rules.update((entry.name, entry.rules) for entry in wish.groups.values() if entry.rules is not None)
    for group_name, kept in sorted(rules.items()):
        for rule in kept:
            if rule.remote.kind == "group" and rule.remote.value in wish.lost_groups:
                yield f"group {rule.remote.value} is not in the file, but group {group_name} would still name it: {rule.text}"
