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
    """Objects with their versions."""

    def __init__(self, versions: dict[ObjectKey, int] | None = None) -> None:
        self._versions = dict(versions or {})
        self._sum = sum(_term(key, version) for key, version in self._versions.items())

    def __iter__(self) -> Iterator[tuple[ObjectKey, int]]:
        return iter(self._versions.items())

    def __len__(self) -> int:
        return len(self._versions)

    def copy(self) -> HeldVersions:
        """Return the same, apart."""
        twin = HeldVersions()
        twin._versions, twin._sum = dict(self._versions), self._sum
        return twin

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._versions

    def put(self, key: ObjectKey, version: int) -> None:
        """Hold ``key`` at ``version``, whatever was held of it."""
        self.drop(key)
        self._versions[key] = version
        self._sum += _term(key, version)

    def drop(self, key: ObjectKey) -> None:
        """Hold ``key`` no more."""
        version = self._versions.pop(key, None)
        if version is not None:
            self._sum -= _term(key, version)

    @property
    def digest(self) -> bytes:
        return (self._sum % _MODULUS).to_bytes(_DIGEST_BYTES, "big")


def _term(key: ObjectKey, version: int) -> int:
    kind, name = key
    return int.from_bytes(sha256(f"{kind.name.lower()}/{name}@{version}".encode()).digest()[:_DIGEST_BYTES], "big")
