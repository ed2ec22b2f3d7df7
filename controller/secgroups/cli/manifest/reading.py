"""From a file to what it says. InputError lists every mistake with its line and field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from secgroups.cli.drafts import (
    ANYWHERE,
    Remote,
    RuleDraft,
    is_default,
    parse_cidr,
    parse_description,
    parse_direction,
    parse_name,
    parse_octet,
    parse_ports,
    parse_protocol,
)
from secgroups.cli.errors import FieldError, InputError, shown
from secgroups.cli.manifest.model import GroupEntry, Manifest, ServerEntry
from secgroups.cli.manifest.nodes import Nodes, is_null, read_nodes
from secgroups.cli.manifest.tree import Mapping as MappingNode
from secgroups.cli.manifest.tree import Node, Sequence

T = TypeVar("T")

RULE_KEYS = ("direction", "protocol", "ports", "icmp_type", "icmp_code", "remote", "description")
_NEEDED_KEYS = ("direction", "protocol", "remote")


def read_manifest(path: str) -> Manifest:
    """Return what the file at ``path`` (- is stdin) says. Order in it means nothing."""
    nodes, root = read_nodes(path)
    if root is None:
        return Manifest(source=nodes.source)
    top = nodes.mapping(root, "", ("project", "groups", "servers"))
    project = _optional(top, "project", lambda node: nodes.value(node, "project", lambda text: parse_name(text, "project")))
    groups = _optional(top, "groups", lambda node: _groups(nodes, node))
    servers = _optional(top, "servers", lambda node: _servers(nodes, node))
    nodes.finish()
    return Manifest(project=project, groups=groups, servers=servers, source=nodes.source)


def read_rules(path: str) -> tuple[RuleDraft, ...]:
    """Return the rules of the file at ``path`` (- is stdin): a list of them, or a mapping whose key ``rules`` has it."""
    nodes, root = read_nodes(path)
    if isinstance(root, MappingNode):
        values = nodes.mapping(root, "", ("rules",))
        nodes.finish()
        root = values.get("rules")
    # An empty file is more likely an accident than a wish.
    if root is None or is_null(root):
        raise InputError(f"{nodes.source} says no rules; for a group without rules write []")
    rules = _rules(nodes, root, "rules")
    nodes.finish()
    return rules


def _optional(values: Mapping[str, Node], key: str, read: Callable[[Node], T]) -> T | None:
    return read(values[key]) if key in values else None


def _groups(nodes: Nodes, node: Node) -> dict[str, GroupEntry]:
    entries: dict[str, GroupEntry] = {}
    for key, value in nodes.mapping(node, "groups").items():
        field = f"groups.{key}"
        name = nodes.checked(value, field, lambda key=key: parse_name(key, "name"))  # type: ignore[misc]
        if name is None:
            continue
        name = "default" if is_default(name) else name
        if name in entries:
            nodes.wrong(value, field, f"is the default group again, first at {entries[name].where}")
        entries[name] = _group(nodes, value, field, name)
    return entries


def _group(nodes: Nodes, node: Node, field: str, name: str) -> GroupEntry:
    """Return the entry; ``web-servers:`` with nothing after it is a group of which only the name is said."""
    values = {} if is_null(node) else nodes.mapping(node, field, ("description", "rules"))
    return GroupEntry(
        name=name,
        description=_optional(values, "description", lambda value: nodes.value(value, f"{field}.description", parse_description)),
        rules=_optional(values, "rules", lambda value: _rules(nodes, value, f"{field}.rules")),
        where=nodes.where(node),
    )


def _rules(nodes: Nodes, node: Node, field: str) -> tuple[RuleDraft, ...]:
    found: list[RuleDraft] = []
    seen: dict[object, str] = {}
    for index, item in enumerate(nodes.sequence(node, field)):
        rule = _rule(nodes, item, f"{field}[{index}]")
        if rule is None:
            continue
        if rule.identity in seen:
            nodes.wrong(item, f"{field}[{index}]", f"{rule.text} stands twice, first at {seen[rule.identity]}")
        seen.setdefault(rule.identity, nodes.where(item))
        found.append(rule)
    return tuple(found)


def _rule(nodes: Nodes, node: Node, field: str) -> RuleDraft | None:
    values = nodes.mapping(node, field, RULE_KEYS)
    missing = [key for key in _NEEDED_KEYS if key not in values]
    if isinstance(node, MappingNode) and missing:
        nodes.wrong(node, field, f"{' and '.join(missing)} must be given")

    def read(key: str, parse: Callable[[str], T]) -> T | None:
        return nodes.value(values[key], f"{field}.{key}", parse) if key in values else None

    direction = read("direction", parse_direction)
    protocol = read("protocol", parse_protocol)
    ports = read("ports", parse_ports)
    icmp_type = read("icmp_type", lambda text: parse_octet(text, "icmp_type"))
    icmp_code = read("icmp_code", lambda text: parse_octet(text, "icmp_code"))
    description = read("description", parse_description)
    remote = _remote(nodes, values["remote"], f"{field}.remote") if "remote" in values else None
    if direction is None or protocol is None or remote is None:
        return None

    def make() -> RuleDraft:
        return RuleDraft(
            direction=direction,
            protocol=protocol,
            ports=ports,
            icmp_type=icmp_type,
            icmp_code=icmp_code,
            remote=remote,
            description=description or "",
        )

    return nodes.checked(node, field, make)


def _remote(nodes: Nodes, node: Node, field: str) -> Remote | None:
    """Return the other side: ``any``, a CIDR, or ``{group: NAME}``."""
    if isinstance(node, MappingNode):
        inner = nodes.mapping(node, field, ("group",)).get("group")
        if inner is None:
            nodes.wrong(node, field, "must be any, a CIDR, or {group: NAME}")
            return None
        name = nodes.value(inner, f"{field}.group", lambda text: parse_name(text, "group"))
        return None if name is None else Remote("group", "default" if is_default(name) else name)
    return nodes.value(node, field, lambda text: ANYWHERE if text in ("any", "anywhere") else parse_cidr(text))


def _servers(nodes: Nodes, node: Node) -> dict[str, ServerEntry]:
    entries: dict[str, ServerEntry] = {}
    owners: dict[str, str] = {}
    for key, value in nodes.mapping(node, "servers").items():
        field = f"servers.{key}"
        if nodes.checked(value, field, lambda key=key: parse_name(key, "id")) is None:  # type: ignore[misc]
            continue
        entry = entries[key] = _server(nodes, value, field, key)
        for address in entry.addresses or ():
            if owners.setdefault(address, key) != key:
                nodes.wrong(value, f"{field}.addresses", f"{address} is given to server {owners[address]} too")
    return entries


def _server(nodes: Nodes, node: Node, field: str, server_id: str) -> ServerEntry:
    known = ("name", "addresses", "agent", "groups")
    values = {} if is_null(node) else nodes.mapping(node, field, known)

    def name_of(text: str) -> str:
        return parse_name(text, "name") if text else ""

    groups = _optional(values, "groups", lambda value: _list(nodes, value, f"{field}.groups", _group_name))
    addresses = _optional(values, "addresses", lambda value: _list(nodes, value, f"{field}.addresses", _address))
    return ServerEntry(
        id=server_id,
        name=_optional(values, "name", lambda value: nodes.value(value, f"{field}.name", name_of)),
        addresses=addresses,
        agent=_optional(values, "agent", lambda value: nodes.value(value, f"{field}.agent", name_of)),
        groups=groups,
        where=nodes.where(node),
    )


def _list(nodes: Nodes, node: Node, field: str, parse: Callable[[str], str]) -> tuple[str, ...]:
    """Return a list of one or more different values."""
    items = nodes.sequence(node, field)
    if isinstance(node, Sequence) and not items:
        nodes.wrong(node, field, "must not be empty")
    found: dict[str, None] = {}
    for index, item in enumerate(items):
        value = nodes.value(item, f"{field}[{index}]", parse)
        if value in found:
            nodes.wrong(item, f"{field}[{index}]", f"{value} stands twice")
        elif value is not None:
            found[value] = None
    return tuple(found)


def _group_name(text: str) -> str:
    return "default" if is_default(text) else parse_name(text, "group")


def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise FieldError("address", f"{shown(text)} is no IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        raise FieldError("address", f"{shown(text)} is scoped or IPv4-mapped; a server has plain addresses")
    if address.is_unspecified or address.is_loopback or address.is_multicast or text == "255.255.255.255":
        raise FieldError("address", f"{shown(text)} is no unicast address that others can reach")
    return str(address)
