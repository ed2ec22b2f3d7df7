"""The collector looks through what is new, not through all that is in force."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind
from secgroups.agent.long_lived import FREEZES_PER_THAW, FRESH_MAX, LongLived
from secgroups.agent.replica import Replica
from secgroups.agent.ruleset import Rule
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

GROUPS, RULES = 30, 200
MARK = "long-lived"


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    gc.collect()
    yield
    gc.unfreeze()


class Ring:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def group(number: int, version: int) -> pb.GroupRules:
    specs = [
        types.RuleSpec(
            direction=types.DIRECTION_INGRESS,
            protocol=types.PROTOCOL_TCP,
            ports=types.PortRange(first=port),
            anywhere=types.Anywhere(),
        )
        for port in range(1, RULES + 1)
    ]
    rules = [pb.PolicyRule(id=f"{MARK}-{number}-{at}-{version}", spec=spec) for at, spec in enumerate(specs)]
    return pb.GroupRules(group_id=str(number), version=version, name=str(number), rules=rules)


def rules_looked_through() -> int:
    """Count those of this test: others may have left some behind."""
    return sum(isinstance(each, Rule) and each.id.startswith(MARK) for each in gc.get_objects())


def test_of_what_is_in_force_little_is_looked_through_however_few_objects_hold_the_rules_and_however_often_they_change() -> None:
    replica, long_lived = Replica(Firewall(now_ns=0)), LongLived()
    replica.welcome(pb.Welcome(store_epoch="e", timeline_id="t", mode=pb.SYNC_MODE_SNAPSHOT))
    replica.update(pb.Update(nonce=1, revision=1, more=True, groups=[group(number, 1) for number in range(GROUPS)]), 0)
    digest = HeldVersions({(Kind.GROUP, str(number)): 1 for number in range(GROUPS)}).digest
    replica.sync_point(pb.SyncPoint(nonce=2, revision=1, state_digest=digest, snapshot_end=True), 0)
    long_lived.note(replica.taken)
    assert rules_looked_through() == 0
    for number in range(GROUPS):
        replica.update(pb.Update(nonce=3 + number, revision=2 + number, groups=[group(number, 2 + number)]), 0)
        long_lived.note(replica.taken)
        assert rules_looked_through() < FRESH_MAX
    gc.unfreeze()
    assert rules_looked_through() == GROUPS * RULES, "those that are gone are freed all the same"


def test_what_is_garbage_already_is_not_left_out() -> None:
    ring = weakref.ref(Ring())
    assert ring() is not None
    LongLived().note(FRESH_MAX)
    assert ring() is None


def test_what_was_left_out_and_became_garbage_is_found_in_the_end() -> None:
    long_lived = LongLived()
    made = Ring()
    ring = weakref.ref(made)
    long_lived.note(FRESH_MAX)
    del made
    gc.collect()
    assert ring() is not None
    for times in range(2, FREEZES_PER_THAW + 1):
        long_lived.note(times * FRESH_MAX)
    assert ring() is None
