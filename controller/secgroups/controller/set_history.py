"""The last few changes of each address set, so that an agent which is a little behind is sent a patch and not the whole set.

Bounded: a set keeps its latest changes only, and no more addresses than a patch may have. What is forgotten costs a whole set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from secgroups.controller.model import Address
from secgroups.controller.stream_messages import AddressSetPatch

CHANGES_PER_SET_MAX = 64
ADDRESSES_PER_SET_MAX = 2_048


@dataclass(frozen=True, slots=True)
class _Step:
    base_version: int
    version: int
    added: frozenset[Address]
    removed: frozenset[Address]

    @property
    def addresses(self) -> int:
        return len(self.added) + len(self.removed)


class SetHistory:
    """Changes of address sets, by group."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._steps: dict[str, deque[_Step]] = {}

    def begin(self, group_id: str, version: int) -> None:
        """Start from a set as it is."""
        self._versions[group_id] = version

    def note(self, group_id: str, version: int, *, added: Iterable[Address], removed: Iterable[Address]) -> None:
        """Remember how a set came from the version that was known to ``version``."""
        step = _Step(self._versions.get(group_id, 0), version, frozenset(added), frozenset(removed))
        self._versions[group_id] = version
        steps = self._steps.setdefault(group_id, deque())
        steps.append(step)
        held = sum(step.addresses for step in steps)
        while steps and (len(steps) > CHANGES_PER_SET_MAX or held > ADDRESSES_PER_SET_MAX):
            held -= steps.popleft().addresses

    def forget(self, group_id: str) -> None:
        """Drop what is known of a group that is gone."""
        self._versions.pop(group_id, None)
        self._steps.pop(group_id, None)

    def find_patch(self, group_id: str, base_version: int, version: int) -> AddressSetPatch | None:
        """Return the patch between two versions, None if it is not known any more."""
        added: set[Address] = set()
        removed: set[Address] = set()
        reached = base_version
        for step in self._steps.get(group_id, ()):
            if step.base_version != reached:
                continue
            # An address that came and went, or went and came back, is no change.
            added, removed = (added - step.removed) | (step.added - removed), (removed - step.added) | (step.removed - added)
            reached = step.version
        if reached != version:
            return None
        return AddressSetPatch(
            group_id=group_id,
            base_version=base_version,
            version=version,
            added_ipv4=pack(added, 4),
            added_ipv6=pack(added, 6),
            removed_ipv4=pack(removed, 4),
            removed_ipv6=pack(removed, 6),
        )


def pack(addresses: Iterable[Address], family: int) -> bytes:
    """Return the addresses of one IP version in network order, ascending, without gaps."""
    return b"".join(sorted(address.packed for address in addresses if address.version == family))
