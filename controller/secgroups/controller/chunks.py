"""Cuts one step of the stream into messages of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from secgroups.controller.stream_messages import AddressSet, AddressSetPatch, GroupRules, Kind, ObjectKey, ServerBinding

CHUNK_BYTES_MAX = 1 << 20

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

    def add(self, piece: Piece) -> None:
        """Put one more piece in."""
        self.size_bytes += _size_bytes(piece)
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


# A key stands for the removal of its object.
Piece = AddressSet | AddressSetPatch | GroupRules | ServerBinding | ObjectKey


def in_order(pieces: Iterable[Piece]) -> list[Piece]:
    """Return sets before groups before servers, then removals the other way round: nothing refers to what is not there."""
    return sorted(pieces, key=_rank)


def cut(pieces: Iterable[Piece], chunk_bytes_max: int = CHUNK_BYTES_MAX) -> list[Chunk]:
    """Return the pieces, in their order, in as few chunks as the size allows. A single large group or server is not cut."""
    chunks: list[Chunk] = []
    for piece in _small(pieces, chunk_bytes_max):
        if not chunks or chunks[-1].size_bytes + _size_bytes(piece) > chunk_bytes_max:
            chunks.append(Chunk())
        chunks[-1].add(piece)
    return chunks


def _rank(piece: Piece) -> int:
    match piece:
        case AddressSet() | AddressSetPatch():
            return 0
        case GroupRules():
            return 1
        case ServerBinding():
            return 2
        case (Kind.SERVER, _):
            return 3
        case (Kind.GROUP, _):
            return 4
    return 5


def _size_bytes(piece: Piece) -> int:
    return _REMOVAL_BYTES if isinstance(piece, tuple) else piece.size_bytes


def _small(pieces: Iterable[Piece], bytes_max: int) -> Iterator[Piece]:
    """Yield each piece, a set that is too large as a first part and patches that fill it up to the same version."""
    for piece in pieces:
        if not isinstance(piece, AddressSet) or piece.size_bytes <= bytes_max:
            yield piece
            continue
        room = max(16, (bytes_max // 2) & ~15)  # Whole addresses of either family.
        parts4 = [piece.ipv4[start : start + room] for start in range(0, len(piece.ipv4), room)]
        parts6 = [piece.ipv6[start : start + room] for start in range(0, len(piece.ipv6), room)]
        yield AddressSet(group_id=piece.group_id, version=piece.version, ipv4=b"", ipv6=b"")
        for part in parts4:
            yield AddressSetPatch(group_id=piece.group_id, base_version=piece.version, version=piece.version, added_ipv4=part)
        for part in parts6:
            yield AddressSetPatch(group_id=piece.group_id, base_version=piece.version, version=piece.version, added_ipv6=part)
