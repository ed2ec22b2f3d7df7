"""YAML with a memory of where everything stood: each value knows its file, line and path, so that a mistake can be shown."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

# Every value is checked against its field, never against a guess of its type: 22 and "22" are the same port.
_TEXT_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "timestamp"))
_NULL_TAG = "tag:yaml.org,2002:null"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

FILE_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. ``line`` counts from 1; ``field`` is a path such as ``[2].steps[0].flow.port``, empty for the whole file."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return f"{place}{self.field}: {self.message}" if self.field else f"{place}{self.message}"


class CaseFileError(Exception):
    """Files that can't be read; ``problems`` holds every mistake found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class Refusal(Exception):  # noqa: N818
    """One mistake, on its way to the loader."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class ValueRefusal(Refusal):
    """A mistake in a value: where a refusal is expected (``error``) it is what the controller would have said."""


@dataclass(frozen=True, slots=True)
class Field:
    """A YAML node and where it stands."""

    file: str
    path: str
    node: yaml.Node

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == _NULL_TAG)

    def refusal(self, message: str) -> Refusal:
        """Return a mistake of this field, to be raised."""
        return Refusal(Problem(file=self.file, line=self.line, field=self.path, message=message))

    def value_refusal(self, message: str) -> ValueRefusal:
        """Return a mistake in the value of this field, to be raised."""
        return ValueRefusal(Problem(file=self.file, line=self.line, field=self.path, message=message))

    def under(self, key: str) -> Field:
        """Return the value of ``key`` if this is a mapping that has it, else this field."""
        return self.entries().get(key, self) if self.is_mapping else self

    def entries(self) -> dict[str, Field]:
        """Return the entries of a mapping in order; an empty value is an empty mapping. Refusal if a key stands twice."""
        if self.is_null:
            return {}
        return {key.text(): value for key, value in self._pairs()}

    def keyed(self, allowed: Collection[str], required: Collection[str] = ()) -> dict[str, Field]:
        """Return the entries of a mapping whose keys are known. Refusal for any other and if one of ``required`` is missing."""
        found = {}
        for key, value in self._pairs():
            name = key.text()
            if name not in allowed:
                known = ", ".join(sorted(allowed))
                raise key.refusal(f"unknown key {name}; known here: {known}")
            found[name] = value
        for name in required:
            if name not in found:
                raise self.refusal(f"{name} is missing")
        return found

    def items(self) -> list[Field]:
        """Return the items of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.value_refusal(f"must be a list, not {self._kind()}")
        return [Field(self.file, f"{self.path}[{index}]", node) for index, node in enumerate(self.node.value)]

    def text(self) -> str:
        """Return a scalar as it is written."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag not in _TEXT_TAGS:
            raise self.value_refusal(f"must be a text, not {self._kind()}")
        return str(self.node.value)

    def whole(self, least: int, most: int) -> int:
        """Return a whole number within the bounds."""
        text = self.text()
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise self.value_refusal(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    def seconds(self) -> float:
        """Return a time span in seconds, not negative."""
        text = self.text()
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1e9:
            raise self.value_refusal(f"must be a number of seconds from 0 to 1e9, not {text!r}")
        return value

    def flag(self) -> bool:
        """Return true or false."""
        text = self.text().lower()
        if text not in _TRUTH:
            raise self.value_refusal(f"must be true or false, not {text!r}")
        return _TRUTH[text]

    def choice(self, options: Collection[str]) -> str:
        """Return one of ``options``."""
        text = self.text()
        if text not in options:
            raise self.value_refusal(f"must be one of {', '.join(options)}, not {text!r}")
        return text

    def _pairs(self, read: dict[int, bool] | None = None) -> Iterator[tuple[Field, Field]]:
        """Yield keys and values. ``read`` has the ids of the nodes read so far for whoever merges this one: true while one is."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.refusal(f"must be a mapping, not {self._kind()}")
        read = {} if read is None else read
        read[id(self.node)] = True
        seen: set[str] = set()
        merged: list[tuple[Field, Field]] = []
        for key_node, value_node in self.node.value:
            if key_node.tag == _MERGE_TAG:
                merged += self._merged(value_node, read)
                continue
            name = Field(self.file, self.path, key_node).text()
            path = f"{self.path}.{name}" if self.path else name
            key = Field(self.file, path, key_node)
            if name in seen:
                raise key.refusal("stands twice")
            seen.add(name)
            yield key, Field(self.file, path, value_node)
        for key, value in merged:
            name = key.text()
            # What stands in the mapping itself wins over what is merged, and the earlier merge over the later.
            if name not in seen:
                seen.add(name)
                yield key, value
        read[id(self.node)] = False

    def _merged(self, node: yaml.Node, read: dict[int, bool]) -> list[tuple[Field, Field]]:
        """Return what is merged, each mapping once: again it brings nothing, and a few lines that double would take for ever."""
        pairs: list[tuple[Field, Field]] = []
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if read.get(id(source)):
                raise self.refusal("is nested too deeply: it holds itself")
            if id(source) not in read:
                pairs += Field(self.file, self.path, source)._pairs(read)
        return pairs

    def _kind(self) -> str:
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        return "nothing" if self.is_null else f"{self.node.value!r}"


def read_file(file: str) -> Field:
    """Return the root of a YAML file. Refusal if it can't be read, is no YAML or holds nothing."""
    try:
        with Path(file).open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _file_refusal(file, 0, f"can't be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise _file_refusal(file, 0, f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        root = _composed(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _file_refusal(file, mark.line + 1 if mark else 0, f"is no YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _file_refusal(file, 0, f"is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _file_refusal(file, 0, "is nested too deeply") from None
    if root is None:
        raise _file_refusal(file, 1, "is empty; it must be a list of cases")
    return Field(file, "", root)


def _composed(content: bytes) -> yaml.Node | None:
    """The fast parser first; what it can't take the complete one may, and its messages are the better ones."""
    try:
        return _compose(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return _compose(content, yaml.SafeLoader)


def _compose(content: bytes, loader: type[yaml.SafeLoader]) -> yaml.Node | None:
    root: yaml.Node | None = yaml.compose(content, loader)
    return root


def _file_refusal(file: str, line: int, message: str) -> Refusal:
    return Refusal(Problem(file=file, line=line, field="", message=message))
