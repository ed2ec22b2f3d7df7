"""The JSON that ``nft -j -f -`` takes (libnftables-json(5)): expressions as functions, commands as methods of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from secgroups.agent.kernel.boxes import NetworkBox, PortBox, Range

Json = Any
Expression = dict[str, Json]
Command = dict[str, Json]

FAMILY = "inet"
COMMENT_BYTES_MAX = 127

ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}
RETURN: Expression = {"return": None}


def ct(key: str, direction: str = "") -> Expression:
    return {"ct": {"key": key, "dir": direction} if direction else {"key": key}}


def meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def header(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}


def concat(*parts: Expression) -> Expression:
    return {"concat": list(parts)} if len(parts) > 1 else parts[0]


def match(left: Expression, right: Json, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def one_of(*values: Json) -> Json:
    return {"set": list(values)}


def bits(left: Expression, mask: Json) -> Expression:
    return {"&": [left, mask]}


def goto(chain: str) -> Expression:
    return {"goto": {"target": chain}}


def jump(chain: str) -> Expression:
    return {"jump": {"target": chain}}


def verdict_of(key: Expression, verdicts: str) -> Expression:
    return {"vmap": {"key": key, "data": f"@{verdicts}"}}


def set_mark(mask: int, value: int) -> Expression:
    """Set the bits of ``mask`` in the connection's mark to ``value`` and leave the others."""
    return {"mangle": {"key": ct("mark"), "value": {"|": [bits(ct("mark"), ~mask & 0xFFFFFFFF), value]}}}


def count(counter: str) -> Expression:
    return {"counter": counter}


def log(prefix: str, group: int) -> Expression:
    """Tell the packet to the program that listens to the nflog ``group``, if there is one."""
    return {"log": {"prefix": prefix, "group": group}}


def key_of(value: Json) -> Json:
    """Return an element's key: an address, packed or not, a name, or a tuple of those for a concatenation."""
    if isinstance(value, tuple):
        return {"concat": [key_of(part) for part in value]}
    if isinstance(value, bytes):
        value = ip_address(value)
    return value if isinstance(value, str) else str(value)


def box_element(made: PortBox | NetworkBox) -> Json:
    """Return a counted element with its rule in the comment: addresses if it has any, ports, protocols."""
    box = made.box if isinstance(made, NetworkBox) else made
    # The kernel matches part by part, and what it costs is how many boxes are left after each: hundreds share a protocol.
    parts = [_range(box.ports), _range(box.protocols)]
    if isinstance(made, NetworkBox):
        first, last = str(made.first), str(made.last)
        parts.insert(0, first if first == last else {"range": [first, last]})
    element = {"val": {"concat": parts}, "counter": {"packets": 0, "bytes": 0}}
    if len(box.rule_id.encode()) <= COMMENT_BYTES_MAX:
        element["comment"] = box.rule_id
    return {"elem": element}


def _range(of: Range) -> Json:
    return of[0] if of[0] == of[1] else {"range": list(of)}


CONFIRMED = match(ct("status"), "confirmed", "in")


class Table:
    """Commands about one table of family inet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def add(self) -> Command:
        return {"add": {"table": {"family": FAMILY, "name": self.name}}}

    def remove(self) -> list[Command]:
        """Return what removes it whether or not it exists."""
        return [self.add(), {"delete": {"table": {"family": FAMILY, "name": self.name}}}]

    def add_chain(self, name: str) -> Command:
        return {"add": {"chain": self._named(name)}}

    def add_base_chain(self, name: str, hook: str, priority: int) -> Command:
        return {"add": {"chain": self._named(name, type="filter", hook=hook, prio=priority, policy="accept")}}

    def add_rule(self, chain: str, comment: str, *expressions: Expression) -> Command:
        return {
            "add": {"rule": {"family": FAMILY, "table": self.name, "chain": chain, "comment": comment, "expr": list(expressions)}}
        }

    def flush_chain(self, name: str) -> Command:
        return {"flush": {"chain": self._named(name)}}

    def delete_chain(self, name: str) -> Command:
        return {"delete": {"chain": self._named(name)}}

    def add_counter(self, name: str) -> Command:
        return {"add": {"counter": self._named(name)}}

    def add_set(self, name: str, types: Sequence[str]) -> Command:
        return {"add": {"set": self._named(name, type=list(types) if len(types) > 1 else types[0])}}

    def add_verdict_map(self, name: str, types: Sequence[str]) -> Command:
        return {"add": {"map": self._named(name, type=list(types) if len(types) > 1 else types[0], map="verdict")}}

    def add_box_set(self, name: str, types: Sequence[str]) -> Command:
        return {"add": {"set": self._named(name, type=list(types), flags=["interval"], stmt=[{"counter": None}])}}

    def delete_set(self, name: str) -> Command:
        return {"delete": {"set": self._named(name)}}

    def add_elements(self, name: str, elements: Iterable[Json]) -> Command:
        return {"add": {"element": self._named(name, elem=list(elements))}}

    def delete_elements(self, name: str, elements: Iterable[Json]) -> Command:
        return {"delete": {"element": self._named(name, elem=list(elements))}}

    def _named(self, name: str, **more: Json) -> dict[str, Json]:
        return {"family": FAMILY, "table": self.name, "name": name, **more}
