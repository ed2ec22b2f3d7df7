"""What lists and shows print: tables, JSON, YAML, CSV, names. Pure but for the last step.

Tables on a terminal are drawn by rich; elsewhere they are aligned text in which nothing is cut off.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from secgroups.cli.errors import CliError

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")

FORMS = ("table", "wide", "json", "yaml", "csv", "name")
# Flows have no names, but a shape that people know.
CONNTRACK = "conntrack"
FLOW_FORMS = (CONNTRACK, "table", "wide", "json", "yaml", "csv")


# No slots: Column[X](...) sets an attribute on what it makes, which a frozen class with slots refuses (Python 3.11).
@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: ``key`` is its name in --columns, --sort and CSV; ``wide`` ones show in wide, CSV and by request."""

    key: str
    text: Callable[[T], str]
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How to print: ``form`` is one of FORMS, ``columns`` are keys (empty: the usual ones), ``sort`` a key, ``-key`` descending."""

    form: str = "table"
    columns: tuple[str, ...] = ()
    sort: str = ""
    color: bool = True


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[T]):
    """How objects of a kind are shown: their columns, their name and all that is known of them."""

    columns: Sequence[Column[T]]
    name: Callable[[T], str]
    data: Callable[[T], Any]

    def chosen(self, view: View) -> list[Column[T]]:
        """Return the columns that ``view`` asks for. CliError for a key that is none, or a form that has no columns."""
        if not view.columns:
            return [column for column in self.columns if not column.wide or view.form in ("wide", "csv")]
        if view.form in ("json", "yaml", "name"):
            raise CliError(f"--columns is for table, wide and csv; {view.form} has none")
        return [self._column(key) for key in view.columns]

    def sorted(self, items: Sequence[T], view: View) -> list[T]:
        """Return ``items`` in the order that ``view`` asks for; numbers inside of texts count as numbers."""
        if not view.sort:
            return list(items)
        column = self._column(view.sort.removeprefix("-"))
        return sorted(items, key=lambda item: _natural(column.text(item)), reverse=view.sort.startswith("-"))

    def _column(self, key: str) -> Column[T]:
        for column in self.columns:
            if column.key == key:
                return column
        raise CliError(f"there is no column {key!r}; there are: {', '.join(column.key for column in self.columns)}")


def _natural(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", text.casefold())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def print_list(items: Sequence[T], kind: Kind[T], view: View) -> None:
    """Print a list of objects."""
    columns = kind.chosen(view)
    items = kind.sorted(items, view)
    if view.form in ("json", "yaml"):
        print_data([kind.data(item) for item in items], view.form)
    elif view.form == "name":
        for item in items:
            click.echo(kind.name(item))
    else:
        header = [column.key for column in columns]
        rows = [[column.text(item) for column in columns] for item in items]
        if view.form == "csv":
            click.echo(csv_text([header, *rows]), nl=False)
        else:
            print_table(header, rows, view)


def print_one(item: T, kind: Kind[T], view: View) -> None:
    """Print one object: in a table form a line for each column."""
    columns = kind.chosen(View(form="wide" if view.form == "table" else view.form, columns=view.columns))
    if view.sort:
        raise CliError("--sort is for lists")
    if view.form in ("json", "yaml"):
        print_data(kind.data(item), view.form)
    elif view.form in ("name", "csv"):
        print_list([item], kind, view)
    else:
        width = max(len(column.key) for column in columns)
        for column in columns:
            click.echo(f"{column.key:<{width}}  {_one_line(column.text(item))}".rstrip())


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], view: View) -> None:
    """Print rows below a header."""
    titles = [title.upper().replace("_", " ") for title in header]
    if sys.stdout.isatty():
        _print_rich(titles, rows, color=view.color)
    else:
        for line in plain_lines(titles, rows):
            click.echo(line)


def plain_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield aligned lines. Line breaks and other control characters in a cell are shown escaped: a row is one line."""
    table = [[_one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]], *, color: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold" if color else "")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_one_line(cell)) for cell in row))
    Console(no_color=not color, highlight=False).print(table)


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as CSV with Unix line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def print_data(data: Any, form: str) -> None:
    """Print plain data as JSON or YAML, keys in their own order."""
    if form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000), nl=False)
    else:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def data_of(message: Message) -> Any:
    """Return a message as plain data with the field names of the API, defaults included."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
