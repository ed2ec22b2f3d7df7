"""The versions of what an agent was told, and their digest; as ``SyncPoint.state_digest`` of the stream defines it.

The sum modulo 2^128 of the first 16 bytes, taken big-endian, of SHA-256 of ``kind/key@version``. A rejected object counts at its
rejected version: both sides then agree on what was said, whatever could be enforced of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from hashlib import sha256

_DIGEST_BYTES = 16
_MODULUS = 1 << 8 * _DIGEST_BYTES


class Kind(IntEnum):
    """The kinds of object that an agent holds. The numbers are those of ``secgroups.v1.ObjectKind``."""

    SERVER = 1
    GROUP = 2
    SET = 3


# A kind and the key within it: "project/id" for a server, the group's id for the others.
ObjectKey = tuple[Kind, str]


class HeldVersions:
    """Objects with their versions.

    A copy shares what was held and keeps apart what changes, so that a step costs what it touches. It is for going on with: once it
    has been copied in turn, what it was made from is not to be used any more.
    """

    def __init__(self, versions: dict[ObjectKey, int] | None = None) -> None:
        self._versions = dict(versions or {})
        # What differs from these, which may be shared; None is not held.
        self._changed: dict[ObjectKey, int | None] = {}
        self._count = len(self._versions)
        self._sum = sum(_term(key, version) for key, version in self._versions.items())

    def __iter__(self) -> Iterator[tuple[ObjectKey, int]]:
        for key, version in self._versions.items():
            if key not in self._changed:
                yield key, version
        for key, changed in self._changed.items():
            if changed is not None:
                yield key, changed

    def __len__(self) -> int:
        return self._count

    def copy(self) -> HeldVersions:
        """Return the same, to be changed while this one stays as it is."""
        for key, version in self._changed.items():
            if version is None:
                self._versions.pop(key, None)
            else:
                self._versions[key] = version
        self._changed = {}
        twin = HeldVersions()
        twin._versions, twin._count, twin._sum = self._versions, self._count, self._sum
        return twin

    def __contains__(self, key: ObjectKey) -> bool:
        return self._find(key) is not None

    def _find(self, key: ObjectKey) -> int | None:
        return self._changed[key] if key in self._changed else self._versions.get(key)

    def put(self, key: ObjectKey, version: int) -> None:
        """Hold ``key`` at ``version``, whatever was held of it."""
        self.drop(key)
        self._changed[key] = version
        self._count += 1
        self._sum += _term(key, version)

    def drop(self, key: ObjectKey) -> None:
        """Hold ``key`` no more."""
        version = self._find(key)
        if version is not None:
            self._changed[key] = None
            self._count -= 1
            self._sum -= _term(key, version)

    @property
    def digest(self) -> bytes:
        return (self._sum % _MODULUS).to_bytes(_DIGEST_BYTES, "big")


def _term(key: ObjectKey, version: int) -> int:
    kind, name = key
    return int.from_bytes(sha256(f"{kind.name.lower()}/{name}@{version}".encode()).digest()[:_DIGEST_BYTES], "big")
