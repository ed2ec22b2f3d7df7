"""Who is there at a point of a case: the names of groups and servers, their addresses, and what a reference means.

The loader keeps one to find references to what can't be there, the runner one of what is there. Both move on by ``apply``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from secgroups.lab.cases.model import (
    DEFAULT_GROUP,
    Action,
    AddGroup,
    Address,
    AddressEnd,
    AddServer,
    DeleteGroup,
    End,
    Name,
    Ref,
    RemoveServer,
    RenameGroup,
    ServerEnd,
    SetAddresses,
)


class UnclearError(Exception):
    """A step that can't be what it says: an unknown name, an address that is a server. ``key`` is where it stands in the step."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Party:
    """One end of traffic, resolved. ``server`` is None for an address that nobody guards."""

    address: Address
    server: Name | None = None


@dataclass
class Roster:
    """Groups and servers by name. ``ever`` holds every address that a server has had, the removed ones included."""

    project: str
    groups: set[Name] = field(default_factory=set)
    servers: dict[Name, tuple[Address, ...]] = field(default_factory=dict)
    departed: dict[Name, tuple[Address, ...]] = field(default_factory=dict)
    ever: dict[Name, set[Address]] = field(default_factory=dict)

    def group(self, ref: Ref, home: str | None = None) -> Name:
        """Return what ``ref`` means in the project ``home``, whether it is there or not.

        A name without a project is one of ``home`` if there is one, else of the case's project.
        """
        name = canonical_group(ref.name)
        if ref.project is not None:
            return Name(ref.project, name)
        own = Name(home or self.project, name)
        return own if self.has_group(own) else Name(self.project, name)

    def server(self, ref: Ref) -> Name:
        """Return what ``ref`` means, whether it is there or not."""
        return Name(ref.project or self.project, ref.name)

    def has_group(self, name: Name) -> bool:
        """True if the group is there; the default group always is."""
        return name.name == DEFAULT_GROUP or name in self.groups

    def get_group(self, key: str, ref: Ref, home: str | None = None) -> Name:
        """Return a group that is there. UnclearError otherwise."""
        name = self.group(ref, home)
        if not self.has_group(name):
            raise UnclearError(key, f"there is no group {ref}")
        return name

    def get_server(self, key: str, ref: Ref) -> Name:
        """Return a server that is there. UnclearError otherwise."""
        name = self.server(ref)
        if name not in self.servers:
            raise UnclearError(key, f"server {ref} was removed" if name in self.departed else f"there is no server {ref}")
        return name

    def past_or_present(self, key: str, ref: Ref) -> Name:
        """Return a server that is or was there. UnclearError otherwise."""
        name = self.server(ref)
        if name not in self.ever:
            raise UnclearError(key, f"{ref} is neither an address nor a server")
        return name

    def addresses(self, name: Name) -> tuple[Address, ...]:
        """Return the addresses of a server, the last ones if it was removed."""
        return self.servers.get(name) or self.departed.get(name, ())

    def owner(self, project: str, address: Address) -> Name | None:
        """Return the server of ``project`` that has ``address`` now."""
        return next((name for name, held in self.servers.items() if name.project == project and address in held), None)

    def parties(self, source: End, destination: End) -> tuple[Party, Party]:
        """Return both ends with their addresses: the first of ``source`` whose family ``destination`` has too.

        UnclearError if there is none.
        """
        sources = self._candidates("from", source)
        destinations = self._candidates("to", destination)
        for one in sources:
            for other in destinations:
                if one.address.version == other.address.version:
                    return one, other
        if _is_exact(source) and _is_exact(destination):
            return sources[0], destinations[0]
        raise UnclearError("to", f"{source} and {destination} have no address of the same family")

    def _candidates(self, key: str, end: End) -> list[Party]:
        if isinstance(end, AddressEnd):
            return [Party(end.address)]
        name = self.past_or_present(key, end.server)
        if end.address is None:
            return [Party(address, name) for address in self.addresses(name)]
        if end.address not in self.ever[name]:
            raise UnclearError(key, f"{end.address} is not an address of server {end.server}")
        return [Party(end.address, name)]

    def add_server(self, name: Name, addresses: Iterable[str]) -> None:
        """Take a server in; it may have been there before."""
        held = tuple(ip_address(text) for text in addresses)
        self.servers[name] = held
        self.departed.pop(name, None)
        self.ever.setdefault(name, set()).update(held)

    def apply(self, action: Action) -> None:
        """Move on to what is there after a change that succeeded."""
        if isinstance(action, AddGroup):
            self.groups.add(self.group(action.setup.group, action.setup.group.project))
        elif isinstance(action, DeleteGroup):
            self.groups.discard(self.group(action.group))
        elif isinstance(action, RenameGroup):
            old = self.group(action.group)
            self.groups.discard(old)
            self.groups.add(Name(old.project, canonical_group(action.name)))
        elif isinstance(action, AddServer):
            self.add_server(self.server(action.setup.server), action.setup.addresses)
        elif isinstance(action, RemoveServer):
            name = self.server(action.server)
            self.departed[name] = self.servers.pop(name)
        elif isinstance(action, SetAddresses):
            self.add_server(self.server(action.server), action.addresses)


def canonical_group(name: str) -> str:
    """Return the name under which a group is found: any spelling of ``default`` is the default group."""
    return DEFAULT_GROUP if name.casefold() == DEFAULT_GROUP else name


def _is_exact(end: End) -> bool:
    return isinstance(end, AddressEnd) or end.address is not None


def is_server(end: End) -> bool:
    """True for an end that is written as a server."""
    return isinstance(end, ServerEnd)
