"""A server whose new form can't be enforced goes on as it was, with the groups and sets that it had, until a good form comes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Direction, Packet, Reason
from secgroups.agent.held import HeldVersions, Kind, ObjectKey
from secgroups.agent.replica import Applied, Replica
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

SERVER, WEB, DB, FRIENDS = "p/s", "web", "db", "friends"
EVERYTHING: dict[ObjectKey, int] = {(Kind.SET, FRIENDS): 1, (Kind.GROUP, WEB): 1, (Kind.SERVER, SERVER): 1}


class Wire:
    """The controller's side of one stream after another. ``told`` is what it believes the agent to hold."""

    def __init__(self) -> None:
        self.replica = Replica(Firewall(now_ns=0))
        self.told: dict[ObjectKey, int] = {}

    def begin(self, mode: pb.SyncMode) -> None:
        self.nonce = 0
        self.replica.welcome(pb.Welcome(store_epoch="e", timeline_id="t", mode=mode))

    def tell(self, message: pb.Update) -> Applied | None:
        self.nonce += 1
        message.nonce = self.nonce
        for kind, objects in ((Kind.SET, message.sets), (Kind.GROUP, message.groups), (Kind.SERVER, message.servers)):
            self.told |= {(kind, each.server if kind is Kind.SERVER else each.group_id): each.version for each in objects}
        removed = ((Kind.SET, message.removed_sets), (Kind.GROUP, message.removed_groups), (Kind.SERVER, message.removed_servers))
        for kind, names in removed:
            for name in names:
                self.told.pop((kind, name), None)
        return self.replica.update(message, 0)

    def point(self, *, snapshot_end: bool) -> Applied:
        """End a step. The agent refuses it if it does not hold what it was told."""
        self.nonce += 1
        digest = HeldVersions(self.told).digest
        message = pb.SyncPoint(nonce=self.nonce, revision=9, state_digest=digest, snapshot_end=snapshot_end)
        return self.replica.sync_point(message, 0)

    def reason(self, source: str, port: int) -> Reason:
        packet = Packet(
            server=SERVER,
            direction=Direction.INGRESS,
            source=ip_address(source),
            destination=ip_address("10.0.0.1"),
            protocol=6,
            source_port=40_000,
            destination_port=port,
            tcp_flags=2,
        )
        return self.replica._firewall.explain(packet, 0).verdict.reason

    @property
    def in_force(self) -> set[ObjectKey]:
        held = self.replica.ruleset
        pairs = ((Kind.SET, held.sets), (Kind.GROUP, held.groups), (Kind.SERVER, held.servers))
        return {(kind, name) for kind, values in pairs for name in values}


def binding(version: int, *group_ids: str, bad: bool = False) -> pb.ServerBinding:
    return pb.ServerBinding(server=SERVER, version=version, ipv4=bytes([10, 0, 0, 1]) + b"?" * bad, group_ids=group_ids)


def group(group_id: str, version: int, port: int, remote: str = "", *, bad: bool = False) -> pb.GroupRules:
    """One rule: TCP from the members of ``remote``, or from anywhere."""
    spec = types.RuleSpec(
        direction=types.DIRECTION_INGRESS,
        protocol=types.PROTOCOL_UNSPECIFIED if bad else types.PROTOCOL_TCP,
        ports=types.PortRange(first=port, last=port),
        **({"group_id": remote} if remote else {"anywhere": types.Anywhere()}),
    )
    rules = [pb.PolicyRule(id=f"{group_id}-{port}", spec=spec)]
    return pb.GroupRules(group_id=group_id, version=version, name=group_id, rules=rules)


def members(group_id: str, version: int, *last_bytes: int) -> pb.AddressSet:
    return pb.AddressSet(group_id=group_id, version=version, ipv4=b"".join(bytes([10, 0, 0, last]) for last in last_bytes))


@pytest.fixture
def wire() -> Wire:
    """A server in the group web, which lets in the group friends, 10.0.0.9, on port 80."""
    made = Wire()
    made.begin(pb.SYNC_MODE_SNAPSHOT)
    made.tell(
        pb.Update(
            revision=1, more=True, sets=[members(FRIENDS, 1, 9)], groups=[group(WEB, 1, 80, FRIENDS)], servers=[binding(1, WEB)]
        )
    )
    made.point(snapshot_end=True)
    assert (made.reason("10.0.0.9", 80), made.reason("10.0.0.8", 80)) == (Reason.NEW, Reason.NO_RULE)
    return made


def move_to_db(wire: Wire, step: str, *, version: int, bad: bool) -> Applied | None:
    """Tell that the server is in the group db alone now, so that web and friends are nothing to this agent any more."""
    update = pb.Update(revision=version, groups=[group(DB, version, 5432)], servers=[binding(version, DB, bad=bad)])
    if step == "snapshot":
        wire.begin(pb.SYNC_MODE_SNAPSHOT)
        wire.told = {}
    else:
        update.removed_groups.append(WEB)
        update.removed_sets.append(FRIENDS)
    if step == "difference":
        wire.begin(pb.SYNC_MODE_DIFFERENCE)
    update.more = step != "update"
    applied = wire.tell(update)
    return wire.point(snapshot_end=step == "snapshot") if update.more else applied


STEPS = pytest.mark.parametrize("step", ["update", "difference", "snapshot"])


@STEPS
def test_a_rejected_server_keeps_the_groups_and_sets_of_its_last_good_version_until_a_good_one_comes(wire: Wire, step: str) -> None:
    applied = move_to_db(wire, step, version=2, bad=True)
    assert applied is not None
    assert [refused.key for refused in applied.rejected] == [(Kind.SERVER, SERVER)]
    # As it was, and not cut off; nor does it have what could not be enforced.
    assert wire.reason("10.0.0.9", 80) is Reason.NEW
    assert {wire.reason("10.0.0.8", 80), wire.reason("10.0.0.9", 5432)} == {Reason.NO_RULE}
    # The controller is told that the agent holds what it was told, and no more.
    assert dict(wire.replica.held) == wire.told == {(Kind.GROUP, DB): 2, (Kind.SERVER, SERVER): 2}

    wire.tell(pb.Update(revision=3, servers=[binding(3, DB)]))
    assert wire.in_force == {(Kind.GROUP, DB), (Kind.SERVER, SERVER)}
    assert (wire.reason("10.0.0.9", 80), wire.reason("10.0.0.9", 5432)) == (Reason.NO_RULE, Reason.NEW)


@STEPS
def test_a_rejected_server_that_goes_takes_with_it_what_was_kept_for_it(wire: Wire, step: str) -> None:
    move_to_db(wire, step, version=2, bad=True)
    wire.tell(pb.Update(revision=3, removed_servers=[SERVER], removed_groups=[DB]))
    assert wire.in_force == set()


@STEPS
def test_what_is_kept_outlives_other_changes_and_restarts_and_goes_with_the_good_version(wire: Wire, step: str) -> None:
    move_to_db(wire, step, version=2, bad=True)
    wire.tell(pb.Update(revision=3, groups=[group(DB, 3, 5433)]))
    assert wire.reason("10.0.0.9", 80) is Reason.NEW

    restarted = Wire()
    restarted.replica.restore(wire.replica.ruleset, "e", 0, timeline_id="t")
    restarted.told = dict(restarted.replica.held)
    assert restarted.told.keys() == EVERYTHING.keys() | {(Kind.GROUP, DB)}
    # The controller compares: the server is another, and web and friends are to go.
    assert move_to_db(restarted, "difference", version=3, bad=True) is not None
    assert restarted.reason("10.0.0.9", 80) is Reason.NEW
    move_to_db(restarted, "snapshot", version=4, bad=False)
    assert restarted.in_force == {(Kind.GROUP, DB), (Kind.SERVER, SERVER)}


def test_a_rejected_group_keeps_the_set_that_its_last_good_rules_name(wire: Wire) -> None:
    wire.tell(pb.Update(revision=2, groups=[group(WEB, 2, 81, bad=True)], removed_sets=[FRIENDS]))
    assert wire.reason("10.0.0.9", 80) is Reason.NEW
    wire.tell(pb.Update(revision=3, groups=[group(WEB, 3, 81)]))
    assert (wire.in_force, wire.reason("10.0.0.9", 81)) == ({(Kind.GROUP, WEB), (Kind.SERVER, SERVER)}, Reason.NEW)


def test_what_is_told_again_is_taken_in_the_version_that_is_told(wire: Wire) -> None:
    move_to_db(wire, "update", version=2, bad=True)
    wire.tell(pb.Update(revision=3, sets=[members(FRIENDS, 3, 8)], groups=[group(WEB, 3, 80, FRIENDS)]))
    assert (wire.reason("10.0.0.9", 80), wire.reason("10.0.0.8", 80)) == (Reason.NO_RULE, Reason.NEW)
    wire.tell(pb.Update(revision=4, servers=[binding(4, DB, WEB)]))
    assert wire.in_force == EVERYTHING.keys() | {(Kind.GROUP, DB)}


def test_what_nothing_rejected_needs_goes_as_it_is_told(wire: Wire) -> None:
    wire.tell(pb.Update(revision=2, groups=[group("other", 2, 22, bad=True)], servers=[binding(2)], removed_groups=[WEB]))
    wire.tell(pb.Update(revision=3, removed_sets=[FRIENDS]))
    assert wire.in_force == {(Kind.SERVER, SERVER)}
