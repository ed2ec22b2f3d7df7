"""From YAML to names, rules, groups and servers: what the setup of a case and its steps have in common.

``refused`` is the error code that the step expects, empty where it must succeed. Where a refusal is expected, a text that is no
address or no CIDR is passed on, for the controller to refuse; elsewhere it is a mistake of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import TypeVar

from secgroups.lab.cases.model import (
    Address,
    AddressEnd,
    AnyRemote,
    CidrRemote,
    End,
    GroupRemote,
    GroupSetup,
    Protocol,
    Ref,
    Remote,
    RuleText,
    ServerEnd,
    ServerSetup,
    Settings,
)
from secgroups.lab.cases.nodes import Field

RULE_KEYS = ("direction", "protocol", "ports", "icmp_type", "icmp_code", "remote", "description")
GROUP_KEYS = ("rules", "egress", "replace")
SERVER_KEYS = ("addresses", "groups")
DIRECTIONS = ("ingress", "egress")

# What a field of the API can carry; what is beyond can't even be sent.
NUMBER_MAX = 2**32 - 1

_PORTS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)

Value = TypeVar("Value")


def read_ref(field: Field, refused: str = "") -> Ref:
    """Return the group or server that is named, ``NAME`` or ``project/NAME``."""
    return ref_of(field.text(), refused)


def ref_of(text: str, refused: str = "") -> Ref:
    """Return the reference that ``text`` spells. Where INVALID_ARGUMENT is expected a slash may be part of a bad name."""
    project, slash, name = text.partition("/")
    if slash and project and name and "/" not in name and refused != "INVALID_ARGUMENT":
        return Ref(project, name)
    return Ref(None, text)


def read_refs(field: Field) -> tuple[Ref, ...]:
    """Return a list of names."""
    return tuple(read_ref(item) for item in field.items())


def optional(entries: Mapping[str, Field], key: str, read: Callable[[Field], Value]) -> Value | None:
    """Return what ``read`` makes of the value of ``key``, None if the key is not there."""
    return read(entries[key]) if key in entries else None


def read_address(field: Field) -> Address:
    """Return an address of a packet, which may be any."""
    try:
        return ip_address(field.text())
    except ValueError:
        raise field.value_refusal(f"{field.text()!r} is no address") from None


def read_end(field: Field) -> End:
    """Return an end of traffic: an address, the name of a server, or ``{server, address}``."""
    if field.is_mapping:
        entries = field.keyed(("server", "address"), required=("server",))
        return ServerEnd(read_ref(entries["server"]), optional(entries, "address", read_address))
    text = field.text()
    try:
        return AddressEnd(ip_address(text))
    except ValueError:
        return ServerEnd(ref_of(text))


def read_protocol(field: Field) -> Protocol | int:
    """Return the protocol of a rule."""
    text = field.text().lower()
    if text in {protocol.value for protocol in Protocol}:
        return Protocol(text)
    if text.isascii() and text.isdigit() and int(text) <= NUMBER_MAX:
        return int(text)
    raise field.value_refusal(f"must be tcp, udp, icmp, any or a number, not {text!r}")


def read_packet_protocol(field: Field) -> Protocol | int:
    """Return the protocol of a packet."""
    protocol = read_protocol(field)
    if protocol is Protocol.ANY or (isinstance(protocol, int) and protocol > 255):
        raise field.value_refusal("a packet is of one protocol: tcp, udp, icmp or a number from 0 to 255")
    return protocol


def read_ports(field: Field) -> tuple[int, int]:
    """Return first and last port, whatever their order."""
    match = _PORTS.fullmatch(field.text())
    if match is None:
        raise field.value_refusal(f"must be a port or a range such as 8080-8090, not {field.text()!r}")
    first = int(match[1])
    if match[2] is not None and int(match[2]) == 0:
        # The API takes a last port of 0 for "the same as the first".
        raise field.value_refusal("the last port of a range is 1 to 65535, not 0")
    return first, first if match[2] is None else int(match[2])


def read_number(field: Field) -> int:
    """Return a number that the API can carry."""
    return field.whole(0, NUMBER_MAX)


def read_remote(field: Field, refused: str) -> Remote:
    """Return a rule's remote: ``any``, a CIDR or address, ``{group: NAME}``."""
    if field.is_mapping:
        return GroupRemote(read_ref(field.keyed(("group",), required=("group",))["group"]))
    text = field.text()
    if text == "any":
        return AnyRemote()
    if not refused:
        try:
            ip_network(text, strict=False)
        except ValueError:
            raise field.value_refusal(f"must be any, a CIDR, an address or {{group: NAME}}, not {text!r}") from None
    return CidrRemote(text)


def read_rule(parent: Field, entries: Mapping[str, Field], refused: str = "") -> RuleText:
    """Return the rule whose keys are among ``entries`` of the mapping ``parent``."""
    for key in ("direction", "protocol"):
        if key not in entries:
            raise parent.value_refusal(f"{key} is missing")
    return RuleText(
        direction=entries["direction"].choice(DIRECTIONS),
        protocol=read_protocol(entries["protocol"]),
        ports=optional(entries, "ports", read_ports),
        icmp_type=optional(entries, "icmp_type", read_number),
        icmp_code=optional(entries, "icmp_code", read_number),
        remote=optional(entries, "remote", lambda field: read_remote(field, refused)) or AnyRemote(),
        description=optional(entries, "description", Field.text) or "",
        alias=optional(entries, "as", Field.text) or "",
    )


def read_rules(field: Field, refused: str = "") -> tuple[RuleText, ...]:
    """Return a list of rules."""
    return tuple(read_rule(item, item.keyed((*RULE_KEYS, "as")), refused) for item in field.items())


def read_group(ref: Ref, entries: Mapping[str, Field], refused: str = "") -> GroupSetup:
    """Return the group ``ref`` as the group keys among ``entries`` describe it."""
    if "egress" in entries:
        entries["egress"].choice(("none",))
    return GroupSetup(
        group=ref,
        rules=optional(entries, "rules", lambda field: read_rules(field, refused)) or (),
        without_egress="egress" in entries,
        replace=optional(entries, "replace", Field.flag) or False,
    )


def read_server(ref: Ref, parent: Field, entries: Mapping[str, Field], refused: str = "") -> ServerSetup:
    """Return the server ``ref`` as the server keys among ``entries`` of the mapping ``parent`` describe it."""
    if "addresses" not in entries and not refused:
        raise parent.refusal("addresses is missing")
    return ServerSetup(
        server=ref,
        addresses=optional(entries, "addresses", lambda field: read_server_addresses(field, refused)) or (),
        groups=optional(entries, "groups", read_refs),
    )


def read_server_addresses(field: Field, refused: str = "") -> tuple[str, ...]:
    """Return the addresses of a server, as they are written."""
    items = field.items()
    if not refused:
        if not items:
            raise field.value_refusal("a server has at least one address")
        for item in items:
            read_address(item)
    return tuple(item.text() for item in items)


def read_settings(field: Field) -> Settings:
    """Return the settings of the engine."""
    entries = field.keyed(("essential_services", "flows_max", "server_flows_max", "tcp_loose_s"))
    return Settings(
        essential_services=optional(entries, "essential_services", Field.flag),
        flows_max=optional(entries, "flows_max", lambda value: value.whole(4, 1 << 26)),
        server_flows_max=optional(entries, "server_flows_max", lambda value: value.whole(4, 1 << 26)),
        tcp_loose_s=optional(entries, "tcp_loose_s", lambda value: value.whole(0, 86_400)),
    )
