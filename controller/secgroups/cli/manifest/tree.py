"""From YAML text to a tree that knows its lines, in one pass and within bounds whatever the text is.

Depth and size are bounded while the text is read, an alias counting as much as what it stands for: neither a deep file nor one
whose aliases multiply costs more than a large honest one. Tags are not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import yaml

# A project at its limits (500 groups of 200 rules, 20,000 servers) has some 3,000,000 keys and values.
NODES_MAX = 4_000_000
# Deep enough for every file that is one.
DEPTH_MAX = 32
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = ("", "~", "null", "Null", "NULL")


class TreeError(Exception):
    """The text is no YAML, or not within the bounds; ``line`` is 0 if there is none."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(slots=True)
class Scalar:
    """A value as it is written; ``plain`` if it is not in quotes."""

    line: int
    text: str
    plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS

    @property
    def is_merge_key(self) -> bool:
        """True for the key by which YAML 1.1 takes over another mapping."""
        return self.plain and self.text == "<<"


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """Keys and values, as often as they stand there."""

    line: int
    items: list[Node] = field(default_factory=list)

    @property
    def pairs(self) -> Iterable[tuple[Node, Node]]:
        return zip(self.items[::2], self.items[1::2], strict=True)


Node = Scalar | Sequence | Mapping


def read_tree(text: str) -> Node | None:
    """Return the root of the one document in ``text``, None if there is none. TreeError."""
    try:
        return _Tree().grow(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise TreeError(line, f"is no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise TreeError(0, f"is no YAML: {error}") from None


class _Tree:
    """Grows from the events of a parser."""

    def __init__(self) -> None:
        self._root: Node | None = None
        self._open: list[Sequence | Mapping] = []
        # What an open collection is called and how large the tree was before it.
        self._begun: list[tuple[str | None, int]] = []
        # By name what an alias stands for and its size; None while that is still open.
        self._anchors: dict[str, tuple[Node, int] | None] = {}
        self._size = 0

    def grow(self, events: Iterable[yaml.Event]) -> Node | None:
        for event in events:
            line = event.start_mark.line + 1 if event.start_mark else 0
            if isinstance(event, yaml.ScalarEvent):
                node = Scalar(line, event.value, plain=bool(event.implicit[0]))
                self._add(node, 1)
                if event.anchor is not None:
                    self._anchors[event.anchor] = (node, 1)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event, Mapping(line) if isinstance(event, yaml.MappingStartEvent) else Sequence(line))
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                self._add(*self._named(event.anchor or "", line))
            elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
                raise TreeError(line, "a second document begins here; a file has one")
        return self._root

    def _add(self, node: Node, size: int) -> None:
        self._size += size
        if self._size > NODES_MAX:
            raise TreeError(node.line, f"there are more than {NODES_MAX} keys and values up to here")
        if self._open:
            self._open[-1].items.append(node)
        else:
            self._root = node

    def _begin(self, event: yaml.CollectionStartEvent, node: Sequence | Mapping) -> None:
        if len(self._open) == DEPTH_MAX:
            raise TreeError(node.line, f"is nested deeper than {DEPTH_MAX} levels")
        self._begun.append((event.anchor, self._size))
        self._add(node, 1)
        self._open.append(node)
        if event.anchor is not None:
            self._anchors[event.anchor] = None

    def _end(self) -> None:
        node = self._open.pop()
        anchor, size_before = self._begun.pop()
        if anchor is not None:
            self._anchors[anchor] = (node, self._size - size_before)

    def _named(self, anchor: str, line: int) -> tuple[Node, int]:
        if anchor not in self._anchors:
            raise TreeError(line, f"*{anchor} stands for nothing: there is no &{anchor} before it")
        found = self._anchors[anchor]
        if found is None:
            raise TreeError(line, f"*{anchor} stands within what it stands for")
        return found
