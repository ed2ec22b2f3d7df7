"""Compares what a table holds with what we put there.

Rules are told apart by their comments: every rule of ours has one. Elements of plain sets and verdict maps are compared one by one,
boxes are counted, since nft shows ranges in forms of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secgroups.agent.kernel.statements import Command

DIFFERENCES_MAX = 5


@dataclass(slots=True)
class Shape:
    """The comments of the rules of each chain, in order; the elements of each set, as text, or how many boxes.

    ``flags`` are the table's: ``dormant`` would let everything pass.
    """

    chains: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, set[str] | int] = field(default_factory=dict)
    flags: str = ""


def shape_of_commands(commands: Iterable[Command]) -> Shape:
    """Return what commands that only add make."""
    return _shape(command["add"] for command in commands if "add" in command)


def shape_of_listing(listed: Iterable[Mapping[str, Any]]) -> Shape:
    """Return what ``nft -j list table`` has shown."""
    return _shape(listed)


def differences(expected: Shape, found: Shape) -> list[str]:
    """Return what is not as it should be, in words, at most ``DIFFERENCES_MAX``; empty if all is."""
    told = [f"the table has flags: {found.flags}"] if found.flags else []
    for kind, wanted, held in (("chain", expected.chains, found.chains), ("set", expected.sets, found.sets)):
        for name in sorted(wanted.keys() | held.keys()):
            if name not in held:
                told.append(f"{kind} {name} is gone")
            elif name not in wanted:
                told.append(f"{kind} {name} is not ours")
            elif wanted[name] != held[name]:
                told.append(f"{kind} {name} was changed")
    return told[:DIFFERENCES_MAX]


def _shape(objects: Iterable[Mapping[str, Any]]) -> Shape:
    shape = Shape()
    for each in objects:
        ((kind, value),) = each.items()
        if kind == "table":
            shape.flags = str(value.get("flags", ""))
        elif kind == "chain":
            shape.chains.setdefault(value["name"], [])
        elif kind == "rule":
            shape.chains.setdefault(value["chain"], []).append(value.get("comment", ""))
        elif kind in ("set", "map"):
            shape.sets[value["name"]] = 0 if "flags" in value else set()
            _add_elements(shape, value["name"], value.get("elem", []))
        elif kind == "element":
            _add_elements(shape, value["name"], value["elem"])
    return shape


def _add_elements(shape: Shape, name: str, elements: list[Any]) -> None:
    held = shape.sets[name]
    if isinstance(held, set):
        held.update(json.dumps(element, sort_keys=True) for element in elements)
    else:
        shape.sets[name] = held + len(elements)
