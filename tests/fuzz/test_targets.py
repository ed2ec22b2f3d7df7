"""No input breaks a target: some seconds' worth of each, and all that was ever found. ``scripts/test --fuzz`` is for the hours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutation import INPUT_BYTES_MAX, FoundError, explore, mutated
from targets import FOLDER, TARGETS, findings, load

# Those that hold a whole engine, file or controller take some milliseconds each.
EXAMPLES = {"rules": 1_000, "manifest": 500, "cases": 200, "cache": 200}
EXAMPLES_OF_OTHERS = 100


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing is logged: a hostile peer leaves much to say."""
    with structlog.testing.capture_logs():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks(name: str) -> None:
    target = load(name)
    varied = st.integers(0, (1 << 32) - 1).map(lambda seed: mutated(Random(seed), target.SEEDS, target.WORDS))

    @settings(
        max_examples=EXAMPLES.get(name, EXAMPLES_OF_OTHERS),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(varied | st.binary(max_size=400))
    def no_input_breaks(data: bytes) -> None:
        target.run(data)

    for seed in target.SEEDS:
        no_input_breaks = example(seed)(no_input_breaks)
    no_input_breaks()


@pytest.mark.parametrize("file", [file for name in TARGETS for file in findings(name)], ids=lambda file: file.name)
def test_what_was_found_is_mended(file: Path) -> None:
    load(file.name.partition("-")[0]).run(file.read_bytes())


# That something would be found.


def test_an_input_that_breaks_is_kept_and_the_same_seed_finds_it_again(tmp_path: Path) -> None:
    def breaks(data: bytes) -> None:
        assert b"evil" not in data

    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(FoundError) as caught:
            explore(breaks, [b"good"], [b"evil"], runs=1_000, seed=1, prefix=folder / "planted")
        assert isinstance(caught.value.__cause__, AssertionError)
        assert b"evil" in caught.value.file.read_bytes()
    assert len({file.name for file in tmp_path.rglob("planted-*")}) == 1


def test_nothing_is_found_where_nothing_breaks_and_inputs_keep_to_their_size(tmp_path: Path) -> None:
    sizes: list[int] = []
    explore(
        lambda data: sizes.append(len(data)), [bytes(INPUT_BYTES_MAX)], [b"word"], runs=500, seed=1, prefix=tmp_path / "planted"
    )
    assert len(sizes) == 500
    assert max(sizes) <= INPUT_BYTES_MAX
    assert len(set(sizes)) > 50
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["chance", "atheris"])
def test_the_command_runs_as_many_inputs_as_it_is_told(engine: str) -> None:
    if engine == "atheris":
        pytest.importorskip("atheris")
    command = [sys.executable, str(FOLDER / "fuzz.py"), "rules", "--runs", "200", "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "200 runs" in done.stdout + done.stderr
