"""What became of first fragments, for the later ones, which show no ports.

Where the contract is silent: every first fragment is remembered, a denied one too; a newer one with the same key takes its
place; when the table is full the oldest goes, whosever it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from secgroups.agent.flow import Address, Direction, Packet, Verdict

# The reassembly time-out of Linux (net.ipv4.ipfrag_time): later than this nobody can use a fragment.
KEPT_NS = 30 * 1_000_000_000


class FragmentKey(NamedTuple):
    """What the fragments of one packet have in common (RFC 791, section 3.2, and the direction)."""

    server: str
    direction: Direction
    source: Address
    destination: Address
    protocol: int
    fragment_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFragment:
    """The verdict of a first fragment and the epoch of the server in which it was given."""

    verdict: Verdict
    group_id: str
    epoch: int
    deadline_ns: int


def _key(packet: Packet) -> FragmentKey:
    return FragmentKey(
        packet.server,
        packet.direction,
        packet.source,
        packet.destination,
        packet.protocol,
        packet.fragment_id,
    )


class FragmentTable:
    """At most ``fragments_max`` first fragments, oldest first."""

    def __init__(self, fragments_max: int) -> None:
        self.fragments_max = fragments_max
        self._first: dict[FragmentKey, FirstFragment] = {}

    def __len__(self) -> int:
        return len(self._first)

    def remember(self, packet: Packet, verdict: Verdict, *, group_id: str, epoch: int, now_ns: int) -> None:
        """Remember the verdict that the first fragment ``packet`` got."""
        key = _key(packet)
        self._first.pop(key, None)
        self._shrink_to(self.fragments_max - 1)
        self._first[key] = FirstFragment(
            verdict=replace(verdict, opened=False),
            group_id=group_id,
            epoch=epoch,
            deadline_ns=now_ns + KEPT_NS,
        )

    def find(self, packet: Packet, *, epoch: int, now_ns: int) -> FirstFragment | None:
        """Return what became of the first fragment of the packet that ``packet`` is a part of."""
        found = self._first.get(_key(packet))
        return found if found is not None and found.epoch == epoch and now_ns < found.deadline_ns else None

    def fit(self, fragments_max: int) -> None:
        """Take on a new capacity."""
        self.fragments_max = fragments_max
        self._shrink_to(fragments_max)

    def drop_server(self, server: str) -> None:
        """Forget all fragments of ``server``."""
        self._first = {key: first for key, first in self._first.items() if key.server != server}

    def _shrink_to(self, most: int) -> None:
        while len(self._first) > most:
            del self._first[next(iter(self._first))]
