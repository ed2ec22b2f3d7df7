"""A YAML file, value by value; mistakes are collected, so that all of them show at once.

Scalars are taken as they are written: 22:30 is no number of minutes, and ``no`` can be the name of a group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from secgroups.cli.errors import FieldError, InputError, shown
from secgroups.cli.manifest import tree
from secgroups.cli.manifest.tree import Mapping, Node, Scalar, TreeError, read_tree

T = TypeVar("T")

# A project at its limits (500 groups of 200 rules) has some 10 MB.
FILE_BYTES_MAX = 64 * 1024 * 1024
# So many mistakes are shown.
PROBLEMS_MAX = 50
FIELD_CHARACTERS_MAX = 300


class Nodes:
    """Reads nodes of one file and keeps what is wrong with them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._problems: list[str] = []
        self._problem_count = 0

    def where(self, node: Node) -> str:
        """Return FILE:LINE."""
        return f"{self.source}:{node.line}"

    def wrong(self, node: Node, field: str, message: str) -> None:
        """Note a mistake."""
        self._problem_count += 1
        if self._problem_count <= PROBLEMS_MAX:
            parts = (
                self.where(node),
                field if len(field) <= FIELD_CHARACTERS_MAX else f"{field[:FIELD_CHARACTERS_MAX]}...",
                message,
            )
            self._problems.append(": ".join(part for part in parts if part))

    def finish(self) -> None:
        """InputError with the mistakes, if there is one."""
        if not self._problems:
            return
        more = self._problem_count - len(self._problems)
        counted = "one mistake" if self._problem_count == 1 else f"{self._problem_count} mistakes"
        lines = [*self._problems, *([f"... and {more} more"] if more else [])]
        raise InputError(f"{self.source} has {counted}; nothing was changed", lines)

    def mapping(self, node: Node, field: str, known: Iterable[str] | None = None) -> dict[str, Node]:
        """Return the values by key. With ``known`` other keys are mistakes, and a value that is null is as if it were not there."""
        if not isinstance(node, Mapping):
            self.wrong(node, field, "must be a mapping of keys to values")
            return {}
        found: dict[str, Node] = {}
        allowed = None if known is None else list(known)
        for key, value in node.pairs:
            if not isinstance(key, Scalar):
                self.wrong(key, field, "a key must be plain text")
            elif allowed is not None and key.text not in allowed:
                self.wrong(key, field, f"there is no key {shown(key.text)} here; there are: {', '.join(allowed)}")
            elif key.is_merge_key:
                self.wrong(key, field, "other mappings are not merged here: say everything (a name that is << needs quotes)")
            elif key.text in found:
                self.wrong(key, field, f"{shown(key.text)} stands twice, first with the value in line {found[key.text].line}")
            else:
                found[key.text] = value
        return found if allowed is None else {key: value for key, value in found.items() if not is_null(value)}

    def sequence(self, node: Node, field: str) -> Sequence[Node]:
        """Return the items of a list."""
        if isinstance(node, tree.Sequence):
            return node.items
        self.wrong(node, field, "must be a list")
        return []

    def text(self, node: Node, field: str) -> str | None:
        """Return a scalar as it is written."""
        if not isinstance(node, Scalar):
            self.wrong(node, field, f"must be one value, not a {'mapping' if isinstance(node, Mapping) else 'list'}")
            return None
        if node.is_null:
            self.wrong(node, field, f"has no value (a text {node.text!r} needs quotes)")
            return None
        return node.text

    def value(self, node: Node, field: str, parse: Callable[[str], T]) -> T | None:
        """Return a parsed scalar, or None for a mistake."""
        text = self.text(node, field)
        return None if text is None else self.checked(node, field, lambda: parse(text))

    def checked(self, node: Node, field: str, make: Callable[[], T]) -> T | None:
        """Return what ``make`` returns; a FieldError is a mistake of ``node``."""
        try:
            return make()
        except FieldError as error:
            prefix = field if field.endswith(error.field) else f"{field}.{error.field}"
            self.wrong(node, prefix, error.message)
            return None


def is_null(node: Node) -> bool:
    """True for a value that is not there, as after ``web-servers:``."""
    return isinstance(node, Scalar) and node.is_null


def read_nodes(path: str) -> tuple[Nodes, Node | None]:
    """Return the reader and the root of the file at ``path`` (- is stdin), None if it is empty. InputError if it is no YAML."""
    source = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1) if path == "-" else _read(Path(path))
        if len(data) > FILE_BYTES_MAX:
            raise InputError(f"{source} has more than {FILE_BYTES_MAX} bytes")
        return Nodes(source), read_tree(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{source} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 at byte {error.start}") from None
    except TreeError as error:
        raise InputError(f"{source}:{error.line}: {error.message}" if error.line else f"{source} {error.message}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)
