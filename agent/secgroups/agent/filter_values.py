"""Values of filters as requests have them: protocols, prefixes, rule ids. FilterError names the field of one that can't be."""

from __future__ import annotations

import re
from ipaddress import IPv6Network, ip_network

from secgroups.agent.errors import FilterError
from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP
from secgroups.agent.ruleset import Network
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

RULE_ID_CHARACTERS_MAX = 128
SERVER_CHARACTERS_MAX = 257

_NUMBERS = {
    types.PROTOCOL_UNSPECIFIED: None,
    types.PROTOCOL_ANY: None,
    types.PROTOCOL_TCP: TCP,
    types.PROTOCOL_UDP: UDP,
    types.PROTOCOL_ICMP: ICMP,
}
_PROTOCOL_MAX = 255
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_SHOWN_CHARACTERS_MAX = 64


def find_protocol(message: pb.ListFlowsRequest | pb.WatchVerdictsRequest) -> int | None:
    """Return the number of the wanted protocol, ``ICMP`` for ICMP on either family; None if all are wanted."""
    if message.HasField("protocol_number") != (message.protocol == types.PROTOCOL_NUMBER):
        raise FilterError("protocol_number", "must be given exactly when protocol is PROTOCOL_NUMBER")
    if message.protocol == types.PROTOCOL_NUMBER:
        number = message.protocol_number
        if number > _PROTOCOL_MAX:
            raise FilterError("protocol_number", f"{number} is not in 0..{_PROTOCOL_MAX}")
        return ICMP if number == ICMPV6 else number
    if message.protocol not in _NUMBERS:
        raise FilterError("protocol", f"{message.protocol} is no protocol")
    return _NUMBERS[message.protocol]


def network_of(text: str, field: str) -> Network:
    """Return the prefix, host bits cleared; a bare address is one of its own."""
    none = FilterError(field, f"{shown(text)} is no IPv4 or IPv6 prefix or address")
    base, slash, length = text.partition("/")
    # ipaddress takes a netmask for a length, and a length with leading zeros.
    if slash and not _PREFIX_LENGTH.fullmatch(length):
        raise none
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise none from None
    if "%" in base:
        raise FilterError(field, f"{shown(text)} has a scope, which no packet carries")
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        raise FilterError(field, f"{shown(text)} is IPv4-mapped; write it as IPv4")
    return network


def rule_id_of(text: str, field: str) -> str:
    """Return the id of a rule, or how it begins."""
    if len(text) > RULE_ID_CHARACTERS_MAX:
        raise FilterError(field, f"has {len(text)} characters, the most allowed is {RULE_ID_CHARACTERS_MAX}")
    return text


def server_of(text: str, field: str) -> str:
    """Return the server if it can be one: ``project/id``."""
    project, _, server_id = text.partition("/")
    if not project or not server_id or "/" in server_id or len(text) > SERVER_CHARACTERS_MAX:
        raise FilterError(field, f"{shown(text)} is no server; write project/id")
    return text


def shown(text: str) -> str:
    """Return a value for a message, in quotes, what is long shortened."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[: _SHOWN_CHARACTERS_MAX - 3]}...")
