"""The digest of what an agent holds: the same whatever the order in which objects came, and cheap to keep up to date.

The sum modulo 2^128 of the first 16 bytes, taken big-endian, of SHA-256 of ``kind/key@version``; see ``SyncPoint.state_digest``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256

from secgroups.controller.stream_messages import ObjectKey

DIGEST_BYTES = 16
_MODULUS = 1 << 8 * DIGEST_BYTES


class HeldVersions:
    """Objects with their versions and, at every moment, the digest of them all."""

    def __init__(self, versions: Mapping[ObjectKey, int] | None = None) -> None:
        self._versions = dict(versions or {})
        self._sum = sum(_term(key, version) for key, version in self._versions.items())

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._versions

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._versions)

    def find_all(self, keys: Iterable[ObjectKey]) -> tuple[int | None, ...]:
        """Return the version of each object, None for one that is not held."""
        return tuple(map(self._versions.get, keys))

    def find(self, key: ObjectKey) -> int | None:
        """Return the version of an object, None if it is not held."""
        return self._versions.get(key)

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
        return (self._sum % _MODULUS).to_bytes(DIGEST_BYTES, "big")


# A change for many agents asks for the same two terms on each of their streams.
@lru_cache(maxsize=4_096)
def _term(key: ObjectKey, version: int) -> int:
    kind, name = key
    return int.from_bytes(sha256(f"{kind.word}/{name}@{version}".encode()).digest()[:DIGEST_BYTES], "big")
