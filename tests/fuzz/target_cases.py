"""Files of cases: read, or refused in words that name the place."""

from __future__ import annotations

from pathlib import Path

from scratch import scratch_folder

from secgroups.lab.cases.loader import load_file
from secgroups.lab.cases.nodes import CaseFileError

_FILE = scratch_folder() / "cases.yaml"
_VECTORS = Path(__file__).parents[1] / "vectors"


def _first_cases(text: str) -> bytes:
    """Return the beginning of a file, up to where a case begins."""
    begins = [at for at in range(200, min(len(text), 1_500)) if text.startswith("\n- name", at)]
    return text[: begins[-1] + 1 if begins else 1_500].encode()


SEEDS = [_first_cases(file.read_text()) for file in sorted(_VECTORS.glob("*.yaml"))]
WORDS = [
    *(b"- name: ", b"project: ", b"settings: ", b"groups: ", b"servers: ", b"steps: ", b"expect: allow", b"expect: deny"),
    *(b"reason: NEW", b"error: NOT_FOUND", b"packet: ", b"flow: ", b"restart: ", b"wait: ", b"1e9", b"1e400", b"nan", b"-1"),
    *(b"&a ", b"*a", b"<<: *a", b"{", b"}", b"[", b"]", b"!!int ", b"!!binary ", b"? ", b"~", b"\t", b"---\n", b"\xff", b"\x00"),
    b"99999999999999999999",
]


def run(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        load_file(str(_FILE))
    except CaseFileError as error:
        assert error.problems
        assert all(problem.file == str(_FILE) and problem.message for problem in error.problems)
