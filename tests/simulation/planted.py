"""Bugs that are put in on purpose, to see that each check can fail: they change what the controller says on its way to the agent.

Each is run with the other checks ignored that would find it first, so that it is the named check which catches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from plan import Plan, plan_of

from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from streams import Connection
    from world import World

Mutate = Callable[["World", "Connection", pb.SubscribeResponse], Iterable[pb.SubscribeResponse]]


@dataclass(frozen=True)
class Planted:
    """A bug, the check that must catch it, and the checks that would be quicker."""

    caught_by: str
    mutate: Mutate
    ignored: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()

    def plan_of(self, seed: int) -> Plan:
        """Return the plan of a seed without faults that are not this one's: what is caught is caught for this bug."""
        plan = plan_of(seed)
        return replace(plan, faults=self.faults, old_agents=frozenset(), windows={}, keeps_flows=True, duration_s=15.0)


def _removals_are_lost(world: World, connection: Connection, message: pb.SubscribeResponse) -> Iterable[pb.SubscribeResponse]:
    update = message.update
    if message.WhichOneof("message") == "update" and len(update.removed_servers) + len(update.removed_sets):
        world.count("planted")
        del update.removed_servers[:], update.removed_sets[:]
    yield message


def _a_patch_loses_an_address(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """The digest can't tell: it is one of versions."""
    for patch in message.update.set_patches:
        if patch.added_ipv4:
            world.count("planted")
            patch.added_ipv4 = patch.added_ipv4[4:]
    yield message


def _a_patch_is_made_for_another_base(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """What another agent needs is sent, with the base version that this one has."""
    for patch in message.update.set_patches:
        if patch.removed_ipv4 or patch.removed_ipv6:
            world.count("planted")
            patch.ClearField("removed_ipv4")
            patch.ClearField("removed_ipv6")
    yield message


def _a_snapshot_forgets_a_server(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """And its digest agrees: the agent can't find out."""
    forgotten = world.forgotten.setdefault(connection.number, 0)
    if message.WhichOneof("message") == "update" and message.update.more and message.update.servers and not forgotten:
        server = message.update.servers.pop()
        world.count("planted")
        name = f"server/{server.server}@{server.version}".encode()
        world.forgotten[connection.number] = int.from_bytes(sha256(name).digest()[:16], "big")
    if message.WhichOneof("message") == "sync_point" and forgotten:
        digest = int.from_bytes(message.sync_point.state_digest, "big") - forgotten
        message.sync_point.state_digest = (digest % (1 << 128)).to_bytes(16, "big")
    yield message


def _another_ones_server_is_sent(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    others = [
        server for server in world.seat.branch.latest.servers.values() if server.agent_id not in ("", connection.agent.agent_id)
    ]
    if message.WhichOneof("message") == "update" and others:
        world.count("planted")
        message.update.servers.add(server=others[0].key, version=1, group_ids=others[0].group_ids)
        world.checks.sent(connection, message)
    yield message


def _updates_are_acknowledged_for_the_agent(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """The agent never gets them."""
    update = message.update
    if message.WhichOneof("message") == "update" and not update.more and connection.messages > 6:
        world.count("planted")
        ack = pb.Ack(nonce=update.nonce, applied_revision=update.revision)
        connection.up.send(pb.SubscribeRequest(ack=ack).SerializeToString())
        return
    yield message


def _the_last_rule_stays(world: World, connection: Connection, message: pb.SubscribeResponse) -> Iterable[pb.SubscribeResponse]:
    """A rule that was deleted is sent on: its flows are not revoked."""
    seen = world.rules_seen
    for group in message.update.groups:
        rules = {rule.id: rule for rule in group.rules}
        for rule_id, rule in seen.get(group.group_id, {}).items():
            if rule_id not in rules:
                world.count("planted")
                group.rules.append(rule)
        seen[group.group_id] = {rule.id: rule for rule in group.rules}
    yield message


def _acknowledgements_are_not_needed(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """Every server leaves its old agent as soon as that is told anything: moves are not waited for."""
    update = message.update
    agent_id = connection.agent.agent_id
    if message.WhichOneof("message") == "update" and not update.more and connection.messages > 4:
        gone = [
            name
            for name in sorted(connection.agent.servers)
            if (server := world.seat.branch.at(update.revision).servers.get(name)) is not None
            and server.agent_id not in ("", agent_id)
            and name not in update.removed_servers
        ]
        world.count("planted", len(gone))
        update.removed_servers.extend(gone)
    yield message


def _commits_vanish(world: World, connection: Connection, message: pb.SubscribeResponse) -> Iterable[pb.SubscribeResponse]:
    """A controller that comes back has forgotten: an older file is put in its place, and nobody says so."""
    world.loses_commits = True
    yield message


def _a_channel_is_never_empty(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    """The controller starts something for each message, and never ends it."""
    world.network.leak(connection)
    yield message


def _one_agent_is_never_answered(
    world: World, connection: Connection, message: pb.SubscribeResponse
) -> Iterable[pb.SubscribeResponse]:
    if connection.agent.agent_id == world.plan.agent_ids[0]:
        world.count("planted")
        return
    yield message


PLANTED = {
    "removals are lost": Planted("enforces", _removals_are_lost),
    "a patch loses an address": Planted("enforces", _a_patch_loses_an_address),
    "a patch is made for another base": Planted("enforces", _a_patch_is_made_for_another_base),
    "a snapshot forgets a server": Planted("enforces", _a_snapshot_forgets_a_server, faults=("reset",)),
    "another one's server is sent": Planted("span", _another_ones_server_is_sent),
    "moves are not waited for": Planted("span", _acknowledgements_are_not_needed, frozenset({"enforces"})),
    "updates are acknowledged for the agent": Planted(
        "in_force", _updates_are_acknowledged_for_the_agent, frozenset({"enforces", "bug"})
    ),
    "a deleted rule stays": Planted("flows", _the_last_rule_stays, frozenset({"enforces"})),
    "commits vanish": Planted("lost", _commits_vanish, faults=("controller_kill", "controller_restart")),
    "tasks are left over": Planted("bounds", _a_channel_is_never_empty),
    "one agent is never answered": Planted("converge", _one_agent_is_never_answered),
}
