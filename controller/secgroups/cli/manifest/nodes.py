"""A YAML file as nodes that know their line; mistakes are collected, so that all of them show at once.

Scalars are taken as they are written: 22:30 is no number of minutes, and ``no`` can be the name of a group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import yaml

from secgroups.cli.errors import FieldError, InputError

T = TypeVar("T")

# A project at its limits (500 groups of 200 rules) has some 10 MB.
FILE_BYTES_MAX = 64 * 1024 * 1024
# Deep enough for every file that is one; libyaml's composer would exhaust the stack on much deeper ones.
DEPTH_MAX = 32
_NULL = "tag:yaml.org,2002:null"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Nodes:
    """Reads nodes of one file and keeps what is wrong with them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._problems: list[str] = []

    def where(self, node: yaml.Node) -> str:
        """Return FILE:LINE."""
        return f"{self.source}:{node.start_mark.line + 1}"

    def wrong(self, node: yaml.Node, field: str, message: str) -> None:
        """Note a mistake."""
        self._problems.append(f"{self.where(node)}: {field}: {message}" if field else f"{self.where(node)}: {message}")

    def finish(self) -> None:
        """InputError with every mistake, if there is one."""
        if self._problems:
            raise InputError(f"{self.source} has {_counted(len(self._problems))}; nothing was changed", self._problems)

    def mapping(self, node: yaml.Node, field: str, known: Iterable[str] | None = None) -> dict[str, yaml.Node]:
        """Return the values by key, without those that are null. With ``known`` other keys are mistakes."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, field, "must be a mapping of keys to values")
            return {}
        found: dict[str, yaml.Node] = {}
        allowed = None if known is None else list(known)
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.wrong(key, field, "a key must be plain text")
            elif allowed is not None and key.value not in allowed:
                self.wrong(key, field, f"there is no key {key.value!r} here; there are: {', '.join(allowed)}")
            elif key.value in found:
                self.wrong(key, field, f"{key.value!r} stands twice, first in line {found[key.value].start_mark.line + 1}")
            else:
                found[key.value] = value
        return found if allowed is None else {key: value for key, value in found.items() if value.tag != _NULL}

    def sequence(self, node: yaml.Node, field: str) -> Sequence[yaml.Node]:
        """Return the items of a list."""
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        self.wrong(node, field, "must be a list")
        return []

    def text(self, node: yaml.Node, field: str) -> str | None:
        """Return a scalar as it is written."""
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
            return str(node.value)
        self.wrong(node, field, "must be plain text")
        return None

    def value(self, node: yaml.Node, field: str, parse: Callable[[str], T]) -> T | None:
        """Return a parsed scalar, or None for a mistake."""
        text = self.text(node, field)
        return None if text is None else self.checked(node, field, lambda: parse(text))

    def checked(self, node: yaml.Node, field: str, make: Callable[[], T]) -> T | None:
        """Return what ``make`` returns; a FieldError is a mistake of ``node``."""
        try:
            return make()
        except FieldError as error:
            prefix = field if field.endswith(error.field) else f"{field}.{error.field}"
            self.wrong(node, prefix, error.message)
            return None


def read_nodes(path: str) -> tuple[Nodes, yaml.Node | None]:
    """Return the reader and the root of the file at ``path`` (- is stdin), None if it is empty. InputError if it is no YAML."""
    source = "stdin" if path == "-" else path
    try:
        data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1) if path == "-" else _read(Path(path))
        if len(data) > FILE_BYTES_MAX:
            raise InputError(f"{source} has more than {FILE_BYTES_MAX} bytes")
        text = data.decode("utf-8-sig")
        _check_depth(text, source)
        return Nodes(source), yaml.compose(text, Loader=_Loader)
    except OSError as error:
        raise InputError(f"{source} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(f"{place}: is no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source} is no YAML: {error}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def _check_depth(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise InputError(f"{source}:{line}: is nested deeper than {DEPTH_MAX} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _counted(count: int) -> str:
    return "one mistake" if count == 1 else f"{count} mistakes"
