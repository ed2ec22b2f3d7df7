"""The latest changes of each address set, so that an agent which is a little behind is sent a patch and not the whole set.

Bounded: a set keeps no more changes, and no more addresses, than a patch may have, and all sets together keep the latest changes
only. What is forgotten costs a whole set.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from secgroups.controller.model import Address
from secgroups.controller.stream_messages import AddressSetPatch

# A patch is worth it while it is much smaller than a set of ten thousand. Reached by bursts, or by agents that were away.
CHANGES_PER_SET_MAX = 1_024
ADDRESSES_PER_SET_MAX = 2_048
# Of all sets together; a change of one address takes about 700 bytes.
CHANGES_MAX = 65_536
IPV4_BYTES, IPV6_BYTES = 4, 16
# Agents that follow each other closely need the same few patches, each made once.
PATCHES_READY_MAX = 256


@dataclass(slots=True, eq=False)
class _Step:
    """How a set came from one version to the next. Addresses are packed: bytes compare in C, address objects in Python."""

    base_version: int
    version: int
    added: set[bytes] = field(default_factory=set)
    removed: set[bytes] = field(default_factory=set)

    @property
    def addresses(self) -> int:
        return len(self.added) + len(self.removed)

    def go_on(self, added: Set[bytes], removed: Set[bytes]) -> None:
        """Take in what came after it: an address that came and went, or went and came back, is no change."""
        back, gone_again = self.removed & added, self.added & removed
        self.removed -= back
        self.added -= gone_again
        self.added |= added - back
        self.removed |= removed - gone_again


@dataclass(slots=True)
class _Kept:
    """What is known of one set: the version that it has now, and the steps that led there without a gap."""

    version: int
    steps: deque[_Step]
    addresses: int = 0

    def append(self, step: _Step) -> None:
        self.steps.append(step)
        self.addresses += step.addresses

    def go_on(self, added: Set[bytes], removed: Set[bytes]) -> None:
        """Have the last step end elsewhere. Takes time in proportion to the addresses."""
        step = self.steps[-1]
        self.addresses -= step.addresses
        step.go_on(added, removed)
        self.addresses += step.addresses

    def popleft(self) -> None:
        self.addresses -= self.steps.popleft().addresses


class SetHistory:
    """Changes of address sets, by group."""

    def __init__(self) -> None:
        self._sets: dict[str, _Kept] = {}
        self._order: deque[tuple[str, int]] = deque()  # Group and version of each step kept, and of some that are gone.
        # By group and base version. A step that is here is grown by what came after it, whatever number of changes came before.
        self._ready: OrderedDict[tuple[str, int], tuple[_Step, AddressSetPatch]] = OrderedDict()
        self._ready_upto: dict[str, int] = {}  # The version that the newest of these lead to, by group, of some that are gone too.

    def begin(self, group_id: str, version: int) -> None:
        """Start from a set as it is."""
        self._sets[group_id] = _Kept(version, deque())

    def note(self, group_id: str, version: int, *, added: Iterable[Address], removed: Iterable[Address]) -> None:
        """Remember how a set came from the version that was known to ``version``.

        What is noted of one version several times is one step: nobody ever held what was in between.
        """
        kept = self._sets.get(group_id)
        if kept is None:
            kept = self._sets[group_id] = _Kept(0, deque())
        come, gone = _packed(added), _packed(removed)
        if version != kept.version:
            kept.append(_Step(kept.version, version, come, gone))
            kept.version = version
            self._order.append((group_id, version))
        elif kept.steps:
            kept.go_on(come, gone)
            if self._ready_upto.pop(group_id, None) == version:
                # What was made leads to what nobody is to have.
                for key in [key for key in self._ready if key[0] == group_id]:
                    del self._ready[key]
        # Else the version is where the known past begins, or its first part is forgotten: no patch can lead there.
        while kept.steps and (len(kept.steps) > CHANGES_PER_SET_MAX or kept.addresses > ADDRESSES_PER_SET_MAX):
            kept.popleft()
        while len(self._order) > CHANGES_MAX:
            self._forget(*self._order.popleft())

    def _forget(self, group_id: str, version: int) -> None:
        kept = self._sets.get(group_id)
        if kept is not None and kept.steps and kept.steps[0].version == version:
            kept.popleft()

    def forget(self, group_id: str) -> None:
        """Drop what is known of a group that is gone."""
        self._sets.pop(group_id, None)
        self._ready_upto.pop(group_id, None)

    def find_patch(self, group_id: str, base_version: int, version: int) -> AddressSetPatch | None:
        """Return the patch from a version to that which the set has now, None if it is not known any more.

        The same patch for all who ask.
        """
        kept = self._sets.get(group_id)
        if kept is None or kept.version != version:
            return None
        key = (group_id, base_version)
        ready = self._ready.get(key)
        if ready is not None and ready[0].version == version:
            self._ready.move_to_end(key)
            return ready[1]
        step = _grown(ready[0], kept.steps) if ready is not None else _step_from(kept.steps, base_version)
        if step is None:
            return None
        made = _patch(group_id, step)
        self._ready[key] = (step, made)
        self._ready.move_to_end(key)
        self._ready_upto[group_id] = version
        if len(self._ready) > PATCHES_READY_MAX:
            self._ready.popitem(last=False)
        return made


def _grown(whole: _Step, steps: deque[_Step]) -> _Step | None:
    """Return a step with all that came after it, None if its beginning is not known any more. Takes time in proportion to those."""
    if not steps or whole.base_version < steps[0].base_version:
        return None
    since: list[_Step] = []
    for step in reversed(steps):
        if step.version <= whole.version:
            break
        since.append(step)
    for step in reversed(since):
        whole.go_on(step.added, step.removed)
    whole.version = steps[-1].version
    return whole


def _step_from(steps: deque[_Step], base_version: int) -> _Step | None:
    """Return all steps since a version as one. Takes time in proportion to them, whatever came before."""
    wanted: list[_Step] = []
    for step in reversed(steps):
        if step.base_version < base_version:
            return None
        wanted.append(step)
        if step.base_version == base_version:
            break
    else:
        return None
    whole = _Step(base_version, steps[-1].version)
    for step in reversed(wanted):
        whole.go_on(step.added, step.removed)
    return whole


def _patch(group_id: str, step: _Step) -> AddressSetPatch:
    return AddressSetPatch(
        group_id=group_id,
        base_version=step.base_version,
        version=step.version,
        added_ipv4=_joined(step.added, IPV4_BYTES),
        added_ipv6=_joined(step.added, IPV6_BYTES),
        removed_ipv4=_joined(step.removed, IPV4_BYTES),
        removed_ipv6=_joined(step.removed, IPV6_BYTES),
    )


def _packed(addresses: Iterable[Address]) -> set[bytes]:
    return {address.packed for address in addresses}


def _joined(addresses: Iterable[bytes], size_bytes: int) -> bytes:
    return b"".join(sorted(address for address in addresses if len(address) == size_bytes))


def pack(addresses: Iterable[Address], family: int) -> bytes:
    """Return the addresses of one IP version in network order, ascending, without gaps."""
    # As numbers: address objects make their bytes, and compare, in Python.
    if family == 4:
        numbers = sorted(map(int, [address for address in addresses if isinstance(address, IPv4Address)]))
        return struct.pack(f">{len(numbers)}I", *numbers)
    numbers = sorted(map(int, [address for address in addresses if isinstance(address, IPv6Address)]))
    return b"".join([number.to_bytes(16, "big") for number in numbers])
