"""What is fuzzed. A target is a module with

- ``run(data)``: makes of bytes what the target takes, and raises for nothing but a finding;
- ``SEEDS``: inputs to begin with;
- ``WORDS``: bytes that mean something in an input.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

FOLDER = Path(__file__).parent
FINDINGS = FOLDER / "findings"
TARGETS = {
    "rules": "what people and programs say of a rule: by the API, in words",
    "manifest": "files of sgctl apply",
    "cases": "files of cases",
    "captures": "pcap and pcapng files, replayed through both engines",
    "records": "packed records and quotes, judged by both engines",
    "cache": "an agent's cached state",
    "flow_file": "the flow table and its names that a restarted agent finds",
    "agent": "what a hostile agent says on its stream",
    "controller": "what a hostile controller says on the stream",
}


class Target(Protocol):
    """A module of this folder."""

    SEEDS: Sequence[bytes]
    WORDS: Sequence[bytes]
    run: Callable[[bytes], None]


def load(name: str) -> Target:
    """Import a target."""
    for folder in (FOLDER, *(FOLDER.parent / other for other in ("agent", "simulation", "controller/stream"))):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return cast("Target", importlib.import_module(f"target_{name}"))


def findings(name: str) -> list[Path]:
    """Return the inputs that a target once could not take."""
    return sorted(FINDINGS.glob(f"{name}-*"))
