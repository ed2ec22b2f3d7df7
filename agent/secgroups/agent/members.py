"""Sets of addresses as they come on the wire: groups have ten thousand members, and an address as an object costs a microsecond."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from ipaddress import IPv4Address, IPv6Address

from secgroups.agent.errors import UnenforceableError
from secgroups.agent.flow import Address

IPV4_BYTES, IPV6_BYTES = 4, 16
_MAPPED = bytes(10) + b"\xff\xff"


def refuse_mapped(packed: Iterable[bytes]) -> None:
    """UnenforceableError if one of these addresses is IPv4-mapped."""
    for raw in packed:
        if raw.startswith(_MAPPED) and len(raw) == IPV6_BYTES:
            raise UnenforceableError(f"{IPv6Address(raw)} is IPv4-mapped; it is an address of IPv4 or of none")


class Members(Set[Address]):
    """An immutable set of addresses that is equal to any other set of the same ones.

    ``packed`` are their bytes in network order, 4 or 16 of each. Address objects are made when one asks for them.
    """

    __slots__ = ("packed",)

    def __init__(self, addresses: Iterable[Address] = ()) -> None:
        """Take in addresses. UnenforceableError if one is IPv4-mapped: it is one of IPv4 or of none."""
        self.packed = frozenset([address.packed for address in addresses])
        refuse_mapped(self.packed)

    @classmethod
    def of(cls, addresses: Set[Address]) -> Members:
        """Return ``addresses`` themselves if they are in this form already."""
        return addresses if isinstance(addresses, Members) else cls(addresses)

    @classmethod
    def unpacked(cls, packed: Iterable[bytes]) -> Members:
        """Return the addresses with these bytes."""
        made = cls()
        made.packed = frozenset(packed)
        return made

    def __contains__(self, address: object) -> bool:
        return isinstance(address, (IPv4Address, IPv6Address)) and address.packed in self.packed

    def __iter__(self) -> Iterator[Address]:
        return (IPv4Address(raw) if len(raw) == IPV4_BYTES else IPv6Address(raw) for raw in self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    def __eq__(self, other: object) -> bool:
        return self.packed == other.packed if isinstance(other, Members) else super().__eq__(other)

    def __hash__(self) -> int:
        # That of the frozenset, which it is equal to.
        return self._hash()

    def __repr__(self) -> str:
        return f"Members({sorted(map(str, self))})"
