"""The contract, case by case: every file of tests/vectors holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secgroups.agent.firewall import ENGINES
from secgroups.lab.cases.loader import load
from secgroups.lab.cases.local import LocalWorlds
from secgroups.lab.cases.model import Case
from secgroups.lab.cases.report import human_line
from secgroups.lab.cases.runner import run_case

CASES = load(sorted(map(str, (Path(__file__).parents[2] / "vectors").glob("*.yaml"))))


@pytest.fixture(scope="module", params=sorted(ENGINES))
def worlds(request: pytest.FixtureRequest) -> Iterator[LocalWorlds]:
    with LocalWorlds(request.param) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=[f"{Path(case.file).stem}: {case.name}" for case in CASES])
def test_the_case_holds(worlds: LocalWorlds, case: Case) -> None:
    outcome = run_case(case, worlds.make)
    assert outcome.ok, human_line(outcome)
