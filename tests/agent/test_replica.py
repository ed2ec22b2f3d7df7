"""What an agent makes of a step: the last that came of an object counts, and nothing is in force before the end."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from secgroups.agent.errors import BaseVersionError, StreamError
from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind
from secgroups.agent.replica import Replica
from secgroups.v1 import agent_service_pb2 as pb

Part = Callable[[pb.Update], object]
BAD = b"?"


def packed(*numbers: int) -> bytes:
    return b"".join(bytes([10, 0, 0, number]) for number in numbers)


def whole(version: int, *numbers: int, bad: bytes = b"") -> Part:
    return lambda update: update.sets.add(group_id="g", version=version, ipv4=packed(*numbers) + bad)


def patch(base: int, version: int, added: tuple[int, ...] = (), removed: tuple[int, ...] = (), bad: bytes = b"") -> Part:
    return lambda update: update.set_patches.add(
        group_id="g", base_version=base, version=version, added_ipv4=packed(*added) + bad, removed_ipv4=packed(*removed)
    )


def gone() -> Part:
    return lambda update: update.removed_sets.append("g")


class Wire:
    """The controller's side: numbers messages and knows what the agent was told."""

    def __init__(self, *, mode: int = pb.SYNC_MODE_SNAPSHOT) -> None:
        self.replica = Replica(Firewall(now_ns=0))
        self.revision = 0
        self.begin(mode)

    def begin(self, mode: int, timeline_id: str = "t1") -> None:
        self.nonce = 0
        self.replica.welcome(pb.Welcome(store_epoch="e", timeline_id=timeline_id, mode=pb.SyncMode.ValueType(mode)))

    def update(self, *parts: Part, more: bool = True) -> object:
        self.nonce += 1
        self.revision += 1
        message = pb.Update(nonce=self.nonce, revision=self.revision, more=more)
        for part in parts:
            part(message)
        return self.replica.update(message, 0)

    def point(self, *, snapshot_end: bool = True, **held: int) -> object:
        self.nonce += 1
        digest = HeldVersions({(Kind.SET, name): version for name, version in held.items()}).digest
        message = pb.SyncPoint(nonce=self.nonce, revision=self.revision, state_digest=digest, snapshot_end=snapshot_end)
        return self.replica.sync_point(message, 0)

    @property
    def members(self) -> set[int] | None:
        held = self.replica.ruleset.sets.get("g")
        return None if held is None else {int(address) & 255 for address in held.members}

    @property
    def rejected(self) -> dict[str, int]:
        return {key[1]: each.version for key, each in self.replica._rejected.items()}


@pytest.mark.parametrize("mode", ["snapshot", "difference", "update"])
@pytest.mark.parametrize(
    ("expected", "version", "parts"),
    [
        ({1}, 12, [whole(12, 1)]),
        ({1, 2}, 12, [whole(12), patch(12, 12, (1,)), patch(12, 12, (2,))]),  # A large set in parts.
        ({1, 3}, 14, [whole(12, 1), patch(12, 13, (2,)), patch(13, 14, (3,), (2,))]),
        ({4}, 14, [whole(12, 1), patch(12, 13, (2,)), whole(14, 4)]),
        ({4, 5}, 15, [whole(12, 1), patch(12, 13, (2,)), whole(14, 4), patch(14, 15, (5,))]),
        ({4}, 14, [whole(12, 1), gone(), whole(14, 4)]),
        (None, 0, [whole(12, 1), patch(12, 13, (2,)), gone()]),
        # A form that can't be enforced, until a good one comes.
        ({4}, 13, [whole(12, 1, bad=BAD), whole(13, 4)]),
        ({4}, 13, [whole(12), patch(12, 12, (1,), bad=BAD), patch(12, 12, (2,)), whole(13, 4)]),
        (None, 0, [whole(12, 1, bad=BAD), gone()]),
    ],
)
def test_the_last_that_came_of_an_object_counts(expected: set[int] | None, version: int, parts: list[Part], mode: str) -> None:
    wire = begun(mode)
    before = wire.members
    for part in parts[:-1]:
        assert wire.update(part) is None
    assert wire.update(parts[-1], more=mode != "update") is None or mode == "update"
    if mode != "update":
        assert wire.members == before
        wire.point(**held(version), snapshot_end=mode == "snapshot")
    assert (wire.members, wire.rejected) == (expected, {})
    wire.begin(pb.SYNC_MODE_RESUMED)
    assert wire.point(**held(version), snapshot_end=False).rejected == ()


@pytest.mark.parametrize("mode", ["snapshot", "difference", "update"])
@pytest.mark.parametrize(
    ("version", "parts"),
    [
        (12, [whole(12, 1, bad=BAD)]),
        (12, [whole(12), patch(12, 12, (1,)), patch(12, 12, (2,), bad=BAD)]),
        (12, [whole(12), patch(12, 12, (1,), bad=BAD), patch(12, 12, (2,))]),
        (13, [whole(12, 1, bad=BAD), patch(12, 13, (2,))]),  # It changed while the step was sent.
        (13, [whole(12, 1), whole(13, 2, bad=BAD)]),  # Of what came before in the step nothing is used.
    ],
)
def test_what_is_rejected_in_part_is_rejected_whole_and_the_last_good_version_stays(
    version: int, parts: list[Part], mode: str
) -> None:
    wire = begun(mode)
    for part in parts[:-1]:
        wire.update(part)
    applied = wire.update(parts[-1], more=mode != "update")
    if mode != "update":
        applied = wire.point(**held(version), snapshot_end=mode == "snapshot")
    assert [(refused.key, refused.version) for refused in applied.rejected] == [((Kind.SET, "g"), version)]
    assert wire.members == {9}
    # It is said again, with every sync point, until a good version comes.
    wire.begin(pb.SYNC_MODE_RESUMED)
    assert [refused.version for refused in wire.point(**held(version), snapshot_end=False).rejected] == [version]
    wire.update(whole(20, 5), more=False)
    assert wire.point(**held(20), snapshot_end=False).rejected == ()
    assert wire.members == {5}


def begun(mode: str) -> Wire:
    """Return a wire to an agent that holds version 10 of the set; what comes next is of a stream that began so."""
    wire = Wire()
    wire.update(whole(10, 9))
    wire.point(g=10)
    if mode != "update":
        wire.begin(pb.SYNC_MODE_SNAPSHOT if mode == "snapshot" else pb.SYNC_MODE_DIFFERENCE)
    return wire


def held(version: int) -> dict[str, int]:
    return {"g": version} if version else {}


@pytest.mark.parametrize(
    ("error", "message", "parts"),
    [
        (BaseVersionError, "patch for version 8, held is 10", [patch(8, 12, (1,))]),
        (BaseVersionError, "patch for version 11, held is 12", [whole(12, 1), patch(11, 13, (2,))]),
        (StreamError, "patch of set g, which was removed in the same step", [gone(), patch(10, 12, (1,))]),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(error: type[Exception], message: str, parts: list[Part]) -> None:
    wire = begun("update")
    *first, last = parts
    for part in first:
        wire.update(part)
    with pytest.raises(error, match=message):
        wire.update(last, more=False)
    assert (wire.members, wire.replica.revision) == ({9}, 1)


@pytest.mark.parametrize("mode", ["snapshot", "difference"])
def test_a_step_whose_digest_does_not_fit_changes_nothing(mode: str) -> None:
    wire = begun(mode)
    wire.update(whole(12, 1))
    with pytest.raises(StreamError, match="state digest at revision"):
        wire.point(g=13, snapshot_end=mode == "snapshot")
    assert (wire.members, wire.replica.revision, dict(wire.replica.held)) == ({9}, 1, {(Kind.SET, "g"): 10})


def test_the_timeline_is_that_of_the_stream_from_what_is_in_force_on() -> None:
    wire = begun("update")
    assert wire.replica.timeline_id == "t1"
    wire.begin(pb.SYNC_MODE_RESUMED, "t2")
    wire.update(whole(12, 1))
    assert wire.replica.timeline_id == "t1"
    wire.point(g=12, snapshot_end=False)
    assert wire.replica.timeline_id == "t2"
    wire.begin(pb.SYNC_MODE_RESUMED, "t3")
    wire.replica.bookmark(pb.Bookmark(revision=9))
    assert (wire.replica.timeline_id, wire.replica.revision) == ("t3", 9)


def test_what_is_restored_keeps_its_timeline() -> None:
    wire = begun("update")
    replica = Replica(Firewall(now_ns=0))
    replica.restore(wire.replica.ruleset, "e", 0, timeline_id="t1")
    assert (replica.store_epoch, replica.timeline_id, replica.revision) == ("e", "t1", 1)
    assert set(replica.ruleset.sets["g"].members) == {ip_address("10.0.0.9")}
