"""A snapshot that would remove too many servers is held back; what is in force stays, whole."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from secgroups.agent.errors import HeldBackError
from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind
from secgroups.agent.removal_limit import HeldBack, RemovalLimit
from secgroups.agent.replica import Replica
from secgroups.v1 import agent_service_pb2 as pb

APPLIED, HELD_BACK = True, False
STRANGE = b"123"  # No list of IPv4 addresses: a server with it can't be enforced.


def names(first: int, last: int) -> set[str]:
    return {f"p/s{number}" for number in range(first, last + 1)}


class Agent:
    """A replica that takes whole streams."""

    def __init__(self, max_removal: float) -> None:
        self.firewall = Firewall(now_ns=0)
        self.replica = Replica(self.firewall, RemovalLimit(max_removal))

    def snapshot(self, revision: int, servers: Collection[str], *, epoch: str = "e", strange: Collection[str] = ()) -> bool:
        """Take a snapshot in two parts; return whether it is in force, after a look that else nothing has changed."""
        before = self.firewall.ruleset
        bindings = [
            pb.ServerBinding(server=name, version=revision, ipv4=STRANGE if name in strange else b"")
            for name in sorted(set(servers) | set(strange))
        ]
        group = pb.GroupRules(group_id=f"g{revision}", version=revision)
        versions = {(Kind.SERVER, each.server): revision for each in bindings} | {(Kind.GROUP, group.group_id): revision}
        self.replica.welcome(pb.Welcome(store_epoch=epoch, mode=pb.SYNC_MODE_SNAPSHOT))
        assert self.replica.update(pb.Update(nonce=1, revision=revision, more=True, groups=[group]), 0) is None
        assert self.replica.update(pb.Update(nonce=2, revision=revision, more=True, servers=bindings), 0) is None
        point = pb.SyncPoint(nonce=3, revision=revision, state_digest=HeldVersions(versions).digest, snapshot_end=True)
        try:
            self.replica.sync_point(point, 0)
        except HeldBackError:
            assert self.replica.held_back is not None
            assert self.firewall.ruleset == before
            return HELD_BACK
        assert self.replica.held_back is None
        assert self.replica.revision == revision
        return APPLIED

    @property
    def guarded(self) -> set[str]:
        return set(self.firewall.ruleset.servers)


@pytest.mark.parametrize(
    ("expected", "removed", "held", "max_removal"),
    [
        (APPLIED, 1, 2, 0.5),  # Exactly the share.
        (HELD_BACK, 2, 2, 0.5),
        (APPLIED, 0, 2, 0.01),
        (HELD_BACK, 1, 2, 0.49),
        (HELD_BACK, 1, 1, 0.99),
        (APPLIED, 1, 1, 1.0),  # Off: everything may go.
        (APPLIED, 10, 10, 1.0),
        (APPLIED, 1, 3, 0.34),
        (HELD_BACK, 1, 3, 0.33),
        (APPLIED, 29, 100, 0.29),  # In binary 0.29 times 100 is less than 29.
        (HELD_BACK, 30, 100, 0.29),
        (APPLIED, 7, 100, 0.07),  # And 0.07 times 100 is more than 7.
        (HELD_BACK, 8, 100, 0.07),
    ],
    ids=str,
)
def test_a_snapshot_may_remove_the_share_and_not_one_server_more(
    expected: bool, removed: int, held: int, max_removal: float
) -> None:
    agent = Agent(max_removal)
    assert agent.snapshot(1, names(1, held))
    left = names(removed + 1, held)
    assert agent.snapshot(2, left) is expected
    assert agent.guarded == (left if expected else names(1, held))


def test_new_servers_do_not_make_up_for_those_that_go() -> None:
    agent = Agent(0.5)
    assert agent.snapshot(1, names(1, 4))
    assert agent.snapshot(2, names(4, 100)) is HELD_BACK
    assert agent.replica.held_back == HeldBack(store_epoch="e", revision=2, servers_removed=3, servers_held=4, max_removal=0.5)
    assert agent.snapshot(3, names(3, 100)) is APPLIED


def test_a_first_sync_is_never_held_back() -> None:
    agent = Agent(0.01)
    assert agent.snapshot(1, []) is APPLIED
    assert agent.snapshot(2, names(1, 3)) is APPLIED


def test_what_was_restored_from_the_cache_counts_as_in_force() -> None:
    first, second = Agent(0.5), Agent(0.5)
    assert first.snapshot(1, names(1, 3))
    second.replica.restore(first.firewall.ruleset, "e", 0)
    assert second.snapshot(2, []) is HELD_BACK
    assert second.guarded == names(1, 3)


def test_another_store_epoch_counts_as_any_other() -> None:
    agent = Agent(0.5)
    assert agent.snapshot(9, names(1, 2))
    assert agent.snapshot(1, [], epoch="new") is HELD_BACK
    # It goes on from what it holds, not from what it has refused.
    assert (agent.replica.store_epoch, agent.replica.resume_epoch, agent.replica.revision) == ("e", "e", 9)
    assert agent.snapshot(2, names(2, 3), epoch="new") is APPLIED
    assert (agent.replica.store_epoch, agent.replica.revision) == ("new", 2)


@pytest.mark.parametrize(
    ("expected", "epoch"),
    [(APPLIED, "e"), (HELD_BACK, "new")],
    ids=["same store: its last good version stays", "other store: nothing of it would be left"],
)
def test_a_server_in_a_form_that_can_not_be_enforced_counts_if_it_would_go(expected: bool, epoch: str) -> None:
    agent = Agent(0.4)
    assert agent.snapshot(1, names(1, 2))
    assert agent.snapshot(2, names(1, 1), strange=names(2, 2), epoch=epoch) is expected
    assert agent.guarded == names(1, 2)


def test_removals_that_are_spelled_out_are_not_limited() -> None:
    agent = Agent(0.01)
    assert agent.snapshot(1, names(1, 5))
    agent.replica.welcome(pb.Welcome(store_epoch="e", mode=pb.SYNC_MODE_DIFFERENCE))
    assert agent.replica.update(pb.Update(nonce=1, revision=2, removed_servers=sorted(names(1, 5))), 0) is not None
    assert agent.guarded == set()


def test_nothing_is_held_back_any_more_once_the_agent_is_in_sync_without_a_snapshot() -> None:
    agent = Agent(0.5)
    assert agent.snapshot(1, names(1, 2))
    digest = agent.replica.held.digest
    assert agent.snapshot(1, [], epoch="new") is HELD_BACK
    agent.replica.welcome(pb.Welcome(store_epoch="e", mode=pb.SYNC_MODE_RESUMED))
    assert agent.replica.held_back is not None
    agent.replica.sync_point(pb.SyncPoint(nonce=1, revision=2, state_digest=digest), 0)
    assert agent.replica.held_back is None
    assert agent.guarded == names(1, 2)
