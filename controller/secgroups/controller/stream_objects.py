"""Makes the objects that agents are sent from the state, each version once for all agents."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from secgroups.controller.set_history import pack
from secgroups.controller.stream_messages import OBJECT_BYTES, AddressSet, GroupRules, Kind, ObjectKey, ServerBinding, StreamObject

if TYPE_CHECKING:
    from secgroups.controller.model import Group, Server
    from secgroups.controller.state import State

CACHE_BYTES_MAX = 64 << 20
IPV4_BYTES = 4


class StreamObjects:
    """The newest version of every object; a bounded number of them is kept ready."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._project_of_group: dict[str, str] = {}
        self._ready: OrderedDict[ObjectKey, StreamObject] = OrderedDict()
        self._ready_bytes = 0

    def know_group(self, group: Group) -> None:
        """Learn which project a group belongs to."""
        self._project_of_group[group.id] = group.project

    def forget_group(self, group_id: str) -> None:
        """Forget a group that is gone."""
        self._project_of_group.pop(group_id, None)
        self._drop((Kind.GROUP, group_id))
        self._drop((Kind.SET, group_id))

    def forget_server(self, server: str) -> None:
        """Forget a server that is gone."""
        self._drop((Kind.SERVER, server))

    def find_server(self, key: str) -> Server | None:
        """Return the server that agents know as ``key``."""
        project, _, server_id = key.partition("/")
        return self._state.find_server(project, server_id)

    def find_version(self, key: ObjectKey) -> int | None:
        """Return the version of an object now, None if there is no such object."""
        kind, name = key
        if kind is Kind.SERVER:
            server = self.find_server(name)
            return server.binding_revision if server else None
        group = self._find_group(name)
        if group is None:
            return None
        return group.rules_revision if kind is Kind.GROUP else group.members_revision

    def set_bytes_min(self, group_id: str) -> int:
        """Return what an address set takes at least, without making it: its members have one address each, or more."""
        return OBJECT_BYTES + IPV4_BYTES * self._state.server_count(group_id)

    def get(self, key: ObjectKey, version: int) -> StreamObject:
        """Return an object whose version now is ``version``, which ``find_version`` said."""
        held = self._ready.get(key)
        if held is not None and held.version == version:
            self._ready.move_to_end(key)
            return held
        made = self._make(key, version)
        self._drop(key)
        self._ready[key] = made
        self._ready_bytes += made.size_bytes
        while self._ready_bytes > CACHE_BYTES_MAX and len(self._ready) > 1:
            self._drop(next(iter(self._ready)))
        return made

    def _drop(self, key: ObjectKey) -> None:
        held = self._ready.pop(key, None)
        if held is not None:
            self._ready_bytes -= held.size_bytes

    def _find_group(self, group_id: str) -> Group | None:
        project = self._project_of_group.get(group_id)
        return self._state.find_group(project, group_id) if project is not None else None

    def _make(self, key: ObjectKey, version: int) -> StreamObject:
        kind, name = key
        if kind is Kind.SERVER:
            server = self.find_server(name)
            addresses = server.addresses if server else ()
            return ServerBinding(
                server=name,
                version=version,
                ipv4=pack(addresses, 4),
                ipv6=pack(addresses, 6),
                group_ids=server.group_ids if server else (),
            )
        if kind is Kind.GROUP:
            group = self._find_group(name)
            return GroupRules(
                group_id=name,
                version=version,
                name=group.name if group else "",
                rules=tuple(sorted(self._state.rules_of_group(name), key=lambda rule: rule.id)),
            )
        members = tuple(self._state.members(name))
        return AddressSet(group_id=name, version=version, ipv4=pack(members, 4), ipv6=pack(members, 6))
