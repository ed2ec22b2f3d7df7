"""``sgctl test`` as people and programs call it: what it prints and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from secgroups.agent.firewall import ENGINES
from secgroups.agent.flow import Explanation, Packet, Verdict
from secgroups.agent.reference import ReferenceEngine
from secgroups.cli.main import run

GOOD = """\
- name: nobody gets in
  groups: {web: {}}
  servers: {w1: {addresses: [10.0.0.1], groups: [web]}}
  steps:
    - {flow: {from: 203.0.113.9, to: w1, protocol: tcp, port: 80}, expect: deny, reason: NO_RULE}
- name: everybody gets out
  groups: {web: {}}
  servers: {w1: {addresses: [10.0.0.1], groups: [web]}}
  steps:
    - {flow: {from: w1, to: 203.0.113.9, protocol: tcp, port: 80}, expect: allow}
"""
BAD = GOOD.replace("expect: allow", "expect: deny, note: mistaken")


def written(tmp_path: Path, name: str, text: str) -> str:
    file = tmp_path / name
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("engine", "chosen"),
    [("compiled", []), ("compiled", ["--engine", "compiled"]), ("reference", ["--engine", "reference"])],
)
def test_cases_that_hold_exit_0_with_a_summary_that_names_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str, chosen: list[str]
) -> None:
    assert run(["test", *chosen, written(tmp_path, "good.yaml", GOOD)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 cases: 2 passed, 0 failed in ")
    assert out.count("\n") == 1
    assert f"(engine {engine}, in process)" in out
    assert err == ""


def test_the_engine_that_is_chosen_is_the_one_that_judges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "good.yaml", GOOD)
    for broken, other in (("compiled", "reference"), ("reference", "compiled")):
        with monkeypatch.context() as patched:
            patched.setitem(ENGINES, broken, Forgetful)
            assert run(["test", "--engine", broken, file]) == 1
            assert "UNKNOWN_SERVER" in capsys.readouterr().out
            assert run(["test", "--engine", other, file]) == 0
            capsys.readouterr()


class Forgetful(ReferenceEngine):
    """Guards nobody."""

    def decide(self, packet: Packet, now_ns: int) -> Verdict:
        return super().decide(replace(packet, server="p/nobody"), now_ns)

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        return super().explain(replace(packet, server="p/nobody"), now_ns)


def test_a_case_that_fails_exits_1_and_says_what_came_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "bad.yaml", BAD)
    assert run(["test", file]) == 1
    failed, counted = capsys.readouterr().out.splitlines()
    assert failed.startswith(
        f"FAIL {file}:6: everybody gets out: step 1 (flow, line 10, mistaken): expected deny, got allow NEW by rule "
    )
    assert " at w1 (egress) (" in failed
    assert counted.startswith("2 cases: 1 passed, 1 failed in ")


def test_json_is_one_object_per_case_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "bad.yaml", BAD)
    assert run(["test", "--json", file]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "file": file,
        "name": "nobody gets in",
        "ok": True,
        "failed_step": None,
        "expected": None,
        "got": None,
        "explain": None,
    }
    assert list(second) == ["file", "name", "ok", "failed_step", "expected", "got", "explain"]
    assert (second["ok"], second["failed_step"], second["expected"]) == (False, 1, "deny")
    assert second["got"].startswith("allow NEW by rule ")
    assert "web" in second["explain"]


def test_a_file_that_cant_be_read_exits_2_with_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, wrong = (
        written(tmp_path, "good.yaml", GOOD),
        written(tmp_path, "wrong.yaml", "- name: one\n  steps:\n    - {flow: {}}\n- {}\n"),
    )
    assert run(["test", good, wrong, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"error: {wrong}:3: [0].steps[0].flow: from is missing",
        f"  {wrong}:4: [1]: name is missing",
    ]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("nowhere.yaml: can't be read: No such file or directory", ["nowhere.yaml"]),
        ("'warp' is not one of 'compiled', 'reference'", ["--engine", "warp", "GOOD"]),
        ("no case has 'nothing' in its name", ["--filter", "nothing", "GOOD"]),
        ("Missing argument 'FILE...'", []),
    ],
)
def test_what_cant_be_run_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str, arguments: list[str]) -> None:
    good = written(tmp_path, "good.yaml", GOOD)
    assert run(["test", *(good if word == "GOOD" else word for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_filter_runs_the_cases_with_the_text_in_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["test", "--filter", "NOBODY", written(tmp_path, "bad.yaml", BAD)]) == 0
    assert capsys.readouterr().out.startswith("1 case: 1 passed, 0 failed in ")
