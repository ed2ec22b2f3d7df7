"""Objects as rows and as JSON of the change log, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from secgroups.controller.limits import LIMIT_NAMES, LimitOverrides
from secgroups.controller.model import (
    ANYWHERE,
    Address,
    AnywhereRemote,
    Direction,
    Group,
    GroupRemote,
    Object,
    Remote,
    Rule,
    RuleSpec,
    Server,
)
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token
from secgroups.controller.trust.principals import Role

Row = Mapping[str, Any]

# Most rules name one of few prefixes, and to parse one takes longer than all the rest of a rule.
_network = lru_cache(maxsize=4_096)(ip_network)

_DIRECTIONS = dict(Direction.__members__)

# One encoder for all: json.dumps makes one a call where anything is not its default.
to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().raw_decode


def spec_record(spec: RuleSpec) -> dict[str, Any]:
    """Return the spec as JSON values."""
    return {
        "direction": spec.direction.name,
        "protocol": spec.protocol,
        "ports": spec.ports,
        "icmp_type": spec.icmp_type,
        "icmp_code": spec.icmp_code,
        "remote": _remote_record(spec.remote),
        "description": spec.description,
    }


def _remote_record(remote: Remote) -> dict[str, str]:
    if isinstance(remote, GroupRemote):
        return {"group": remote.group_id}
    return {} if isinstance(remote, AnywhereRemote) else {"cidr": str(remote)}


def spec_of(record: Row) -> RuleSpec:
    """Return the spec of its JSON values."""
    remote = record["remote"]
    return RuleSpec(
        direction=_DIRECTIONS[record["direction"]],
        protocol=record["protocol"],
        ports=tuple(record["ports"]) if record["ports"] else None,
        icmp_type=record["icmp_type"],
        icmp_code=record["icmp_code"],
        remote=GroupRemote(remote["group"]) if "group" in remote else _network(remote["cidr"]) if remote else ANYWHERE,
        description=record["description"],
    )


def read_spec(text: str) -> RuleSpec:
    """Return the spec of its JSON. ValueError, LookupError, TypeError, InvalidError if it is none."""
    record, end = _from_json(text)
    if end != len(text):
        raise ValueError(f"{len(text) - end} characters after the end of its spec")
    return spec_of(record)


# Many rules allow the same, those that a group is born with first of all.
spec_of_text = lru_cache(maxsize=4_096)(read_spec)


def address_of(text: str) -> Address:
    """Return the address that ``text`` spells as it was written: dotted or with colons. ValueError if it is none."""
    # As strict as the classes are with text, and several times as quick; IPv6 addresses of one link are none here.
    try:
        return IPv6Address(inet_pton(AF_INET6, text)) if ":" in text else IPv4Address(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError(f"{text!r} is no address") from None


def names_of(text: str) -> tuple[str, ...]:
    """Return the names of a column that holds several; no name has a slash."""
    return tuple(text.split("/")) if text else ()


GROUP_COLUMNS = (
    "id", "project", "name", "description", "created_us", "updated_us", "revision", "rules_revision", "members_revision",
)  # fmt: skip
SERVER_COLUMNS = (
    "project", "id", "name", "agent_id", "created_us", "updated_us", "revision", "binding_revision", "previous_agent_ids",
    "moved_revision",
)  # fmt: skip
# What the change log tells of them: nothing that is secret.
_LOGGED: dict[type[Any], tuple[str, ...]] = {
    Token: ("id", "name", "role", "project", "created_us", "expires_us"),
    AgentCertificate: ("serial", "agent_id", "issued_us", "expires_us"),
    AgentRevocation: ("agent_id", "revoked_us"),
}
LIMIT_COLUMNS = ("project", "updated_us", "revision", *LIMIT_NAMES)


def group_of(row: Row | Sequence[Any]) -> Group:
    """Return the group of a row or a record."""
    return Group(**{name: row[name] for name in GROUP_COLUMNS})  # type: ignore[call-overload]


def rule_of(row: Row) -> Rule:
    """Return the rule of a row."""
    return _rule(row, spec_of_text(row["spec"]))


def _rule(values: Row, spec: RuleSpec) -> Rule:
    return Rule(
        id=values["id"],
        project=values["project"],
        group_id=values["group_id"],
        spec=spec,
        created_us=values["created_us"],
        revision=values["revision"],
    )


def server_of(row: Row, addresses: Sequence[str], group_ids: Sequence[str]) -> Server:
    """Return the server of a row, its addresses in order and its groups in ascending order."""
    return Server(
        **{name: row[name] for name in SERVER_COLUMNS if name != "previous_agent_ids"},
        previous_agent_ids=names_of(row["previous_agent_ids"]),
        addresses=tuple([address_of(text) for text in addresses]),
        group_ids=tuple(group_ids),
    )


def server_record(server: Server) -> dict[str, Any]:
    """Return a server as the values of its columns."""
    record = {name: getattr(server, name) for name in SERVER_COLUMNS}
    record["previous_agent_ids"] = "/".join(server.previous_agent_ids)
    return record


def limit_overrides_of(row: Row | Sequence[Any]) -> LimitOverrides:
    """Return the overrides of a row or a record."""
    return LimitOverrides(**{name: row[name] for name in LIMIT_COLUMNS})  # type: ignore[call-overload]


def record_of(thing: Object | None) -> str | None:
    """Return an object as JSON for the change log."""
    if thing is None:
        return None
    if isinstance(thing, Group):
        record = {name: getattr(thing, name) for name in GROUP_COLUMNS}
    elif isinstance(thing, Rule):
        record = {name: getattr(thing, name) for name in ("id", "project", "group_id", "created_us", "revision")}
        record["spec"] = spec_record(thing.spec)
    elif isinstance(thing, LimitOverrides):
        record = {name: getattr(thing, name) for name in LIMIT_COLUMNS}
    elif isinstance(thing, Token | AgentCertificate | AgentRevocation):
        record = {name: getattr(thing, name) for name in _LOGGED[type(thing)]}
    else:
        record = server_record(thing)
        record["addresses"] = [str(address) for address in thing.addresses]
        record["group_ids"] = thing.group_ids
    return to_json(record)


def thing_of(kind: str, text: str | None) -> Object | None:
    """Return the object of its JSON in the change log."""
    if text is None:
        return None
    record = json.loads(text)
    if kind == "group":
        return group_of(record)
    if kind == "rule":
        return _rule(record, spec_of(record["spec"]))
    if kind == "limits":
        return limit_overrides_of(record)
    if kind == "token":
        return Token(**{**record, "role": Role(record["role"])})
    if kind == "certificate":
        return AgentCertificate(**record)
    if kind == "revocation":
        return AgentRevocation(**record)
    if "previous_agent_id" in record:
        # Written before there could be several.
        record["previous_agent_ids"] = record["previous_agent_id"]
    return server_of(record, record["addresses"], record["group_ids"])
