"""How objects are printed, in every form. No controller."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import yaml

from secgroups.cli.errors import CliError
from secgroups.cli.output import Column, Kind, View, data_of, plain_lines, print_list, print_one
from secgroups.v1 import types_pb2 as types


class Item(NamedTuple):
    """What is shown here."""

    id: str
    size: str = ""
    note: str = ""


KIND: Kind[Item] = Kind(
    columns=[
        Column("id", lambda item: item.id),
        Column("size", lambda item: item.size),
        Column("note", lambda item: item.note, wide=True),
    ],
    name=lambda item: item.id,
    data=lambda item: item._asdict(),
)
ITEMS = [Item("b", "10"), Item("a", "9", "x, y"), Item("c", "80-90", 'say "no"')]

Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return what a list prints."""

    def list_of(items: list[Item] = ITEMS, **view: Any) -> str:
        print_list(items, KIND, View(**view))
        return capsys.readouterr().out

    return list_of


@pytest.mark.parametrize(
    ("expected", "view"),
    [
        ("ID  SIZE\nb   10\na   9\nc   80-90\n", {}),
        ('ID  SIZE   NOTE\nb   10\na   9      x, y\nc   80-90  say "no"\n', {"form": "wide"}),
        ("b\na\nc\n", {"form": "name"}),
        ('id,size,note\nb,10,\na,9,"x, y"\nc,80-90,"say ""no"""\n', {"form": "csv"}),
        ('NOTE      ID\n          b\nx, y      a\nsay "no"  c\n', {"columns": ("note", "id")}),
        ("size\n10\n9\n80-90\n", {"form": "csv", "columns": ("size",)}),
        ("a\nb\nc\n", {"form": "name", "sort": "id"}),
        ("c\nb\na\n", {"form": "name", "sort": "-id"}),
        ("a\nb\nc\n", {"form": "name", "sort": "size"}),  # 9 before 10 before 80-90
    ],
)
def test_a_list_is_printed_in_every_form(printed: Printed, expected: str, view: dict[str, Any]) -> None:
    assert printed(**view) == expected


def test_an_empty_list_is_a_header_or_an_empty_list(printed: Printed) -> None:
    assert printed([]) == "ID  SIZE\n"
    assert printed([], form="json") == "[]\n"
    assert printed([], form="yaml") == "[]\n"
    assert printed([], form="name") == ""


def test_json_and_yaml_hold_everything_in_the_order_asked_for(printed: Printed) -> None:
    expected = [
        {"id": "a", "size": "9", "note": "x, y"},
        {"id": "b", "size": "10", "note": ""},
        {"id": "c", "size": "80-90", "note": 'say "no"'},
    ]
    assert json.loads(printed(form="json", sort="id")) == expected
    assert yaml.safe_load(printed(form="yaml", sort="id")) == expected


@pytest.mark.parametrize(
    ("said", "view"),
    [
        ("there is no column 'frob'; there are: id, size, note", {"columns": ("id", "frob")}),
        ("there is no column 'frob'; there are: id, size, note", {"sort": "-frob"}),
        ("--columns is for table, wide and csv; json has none", {"form": "json", "columns": ("id",)}),
    ],
)
def test_a_column_that_is_none_is_an_error_that_lists_them(printed: Printed, said: str, view: dict[str, Any]) -> None:
    with pytest.raises(CliError, match="column") as refused:
        printed(**view)
    assert refused.value.message == said


@pytest.mark.parametrize(
    ("expected", "view"),
    [
        ("id    a\nsize  9\nnote  x, y\n", {}),
        ("note  x, y\nid    a\n", {"columns": ("note", "id")}),
        ("a\n", {"form": "name"}),
        ('id,size,note\na,9,"x, y"\n', {"form": "csv"}),
        ('{\n  "id": "a",\n  "size": "9",\n  "note": "x, y"\n}\n', {"form": "json"}),
        ("id: a\nsize: '9'\nnote: x, y\n", {"form": "yaml"}),
    ],
)
def test_one_object_is_printed_as_an_object(capsys: pytest.CaptureFixture[str], expected: str, view: dict[str, Any]) -> None:
    print_one(ITEMS[1], KIND, View(**view))
    assert capsys.readouterr().out == expected


def test_a_row_is_one_line_whatever_is_in_it_and_nothing_is_cut_off() -> None:
    long = "x" * 1000
    lines = list(plain_lines(["ID", "NOTE"], [["a", "two\nlines\x1b[31m"], [long, "ü"]]))
    assert len(lines) == 3
    assert "two\\nlines\\x1b[31m" in lines[1]
    assert lines[2] == f"{long}  ü"


def test_a_message_is_shown_whole_with_the_names_of_the_api() -> None:
    group = types.Group(id="g", name="web", rule_count=2)
    assert data_of(group) == {
        "id": "g",
        "project": "",
        "name": "web",
        "description": "",
        "etag": "",
        "is_default": False,
        "rule_count": 2,
        "server_count": 0,
    }


PRINT_IN_TERMINAL = """
from secgroups.cli.output import Column, Kind, View, print_list
kind = Kind(columns=[Column("id", lambda text: text), Column("note", lambda text: "[red]" + text)], name=str, data=str)
print_list(["0123456789" * 4, "b"], kind, View(color={color}))
"""


def in_terminal(code: str, columns: int, **environment: str) -> str:
    """Return what Python code prints on a terminal that is ``columns`` wide."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
    env.pop("NO_COLOR", None)
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stdin=theirs, stderr=subprocess.PIPE, env=env) as process:
        os.close(theirs)
        read = b""
        # A terminal whose other side is closed answers with an error, not with an end of file.
        while chunk := _read(ours):
            read += chunk
        assert process.stderr is not None
        complaint = process.stderr.read().decode()
    os.close(ours)
    assert (process.returncode, complaint) == (0, "")
    return read.decode().replace("\r\n", "\n")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def test_a_terminal_gets_a_table_with_bold_titles_and_no_markup_is_obeyed() -> None:
    shown = in_terminal(PRINT_IN_TERMINAL.format(color=True), 120)
    assert "\x1b[1m" in shown
    assert "0123456789" * 4 + "  [red]0123456789" in shown


def test_no_color_leaves_no_escape_and_a_narrow_terminal_folds_instead_of_cutting() -> None:
    shown = in_terminal(PRINT_IN_TERMINAL.format(color=False), 40)
    assert "\x1b" not in shown
    rows = [line for line in shown.splitlines()[1:] if not line.startswith("b")]
    assert "".join(line[:20].strip() for line in rows).count("0123456789") >= 2
    assert "…" not in shown


def test_csv_can_be_read_back(printed: Printed) -> None:
    nasty = [Item("a,b", 'quote " and\nline', "ü; ,")]
    assert list(csv.reader(io.StringIO(printed(nasty, form="csv"))))[1] == list(nasty[0])
