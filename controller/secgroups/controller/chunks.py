"""Fills the messages of a step up to a bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from secgroups.controller.stream_messages import AddressSet, AddressSetPatch, GroupRules, Kind, ObjectKey, ServerBinding, Update

CHUNK_BYTES_MAX = 1 << 20
# A smaller window is filled by one such message: sets are not cut into shreds.
CHUNK_BYTES_MIN = 4 << 10

_REMOVAL_BYTES = 600  # A key of two names of 128 characters, four bytes each at most, is shorter than twice that.


@dataclass
class Chunk:
    """What one message holds."""

    sets: list[AddressSet] = field(default_factory=list)
    set_patches: list[AddressSetPatch] = field(default_factory=list)
    groups: list[GroupRules] = field(default_factory=list)
    servers: list[ServerBinding] = field(default_factory=list)
    removed_servers: list[str] = field(default_factory=list)
    removed_groups: list[str] = field(default_factory=list)
    removed_sets: list[str] = field(default_factory=list)
    size_bytes: int = 0

    def has_room(self, piece: Piece, bytes_max: int) -> bool:
        """Whether one more piece fits; the first one always does."""
        return not self.size_bytes or self.size_bytes + size_bytes(piece) <= bytes_max

    def add(self, piece: Piece) -> None:
        """Put one more piece in."""
        self.size_bytes += size_bytes(piece)
        match piece:
            case AddressSet():
                self.sets.append(piece)
            case AddressSetPatch():
                self.set_patches.append(piece)
            case GroupRules():
                self.groups.append(piece)
            case ServerBinding():
                self.servers.append(piece)
            case (Kind.SERVER, name):
                self.removed_servers.append(name)
            case (Kind.GROUP, name):
                self.removed_groups.append(name)
            case (_, name):
                self.removed_sets.append(name)

    def update(self, nonce: int, revision: int, oldest_commit_us: int, *, more: bool) -> Update:
        """Return the message."""
        return Update(
            nonce=nonce,
            revision=revision,
            more=more,
            sets=tuple(self.sets),
            set_patches=tuple(self.set_patches),
            groups=tuple(self.groups),
            servers=tuple(self.servers),
            removed_servers=tuple(self.removed_servers),
            removed_groups=tuple(self.removed_groups),
            removed_sets=tuple(self.removed_sets),
            oldest_commit_us=oldest_commit_us,
        )


# A key stands for the removal of its object.
Piece = AddressSet | AddressSetPatch | GroupRules | ServerBinding | ObjectKey


def size_bytes(piece: Piece) -> int:
    """Return about what a piece takes in a message, rather too much than too little."""
    return _REMOVAL_BYTES if isinstance(piece, tuple) else piece.size_bytes


def parts_of(piece: Piece, bytes_max: int) -> Iterator[Piece]:
    """Yield a set that is too large as an empty one and patches that fill it up to the same version, all else as it is."""
    if not isinstance(piece, AddressSet) or piece.size_bytes <= bytes_max:
        yield piece
        return
    room = max(16, (bytes_max // 2) & ~15)  # Whole addresses of either family.
    yield AddressSet(group_id=piece.group_id, version=piece.version, ipv4=b"", ipv6=b"")
    for start in range(0, len(piece.ipv4), room):
        part = piece.ipv4[start : start + room]
        yield AddressSetPatch(group_id=piece.group_id, base_version=piece.version, version=piece.version, added_ipv4=part)
    for start in range(0, len(piece.ipv6), room):
        part = piece.ipv6[start : start + room]
        yield AddressSetPatch(group_id=piece.group_id, base_version=piece.version, version=piece.version, added_ipv6=part)
