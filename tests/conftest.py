"""Plain text unless a test says otherwise; a small disk; another build of the engine: what SECGROUPS_CHECKED_ENGINE names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

ENGINE = "secgroups.agent._engine"

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long a machine that does other things takes says nothing of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Whoever is started, and sgctl, talks in plain text and knows nothing of whoever runs the tests: see tests/trust for all the rest.
os.environ |= {
    "SECGROUPS_CONTROLLER_PLAINTEXT": "true",
    "SECGROUPS_AGENT_PLAINTEXT": "true",
    "SECGROUPS_PLAINTEXT": "true",
    "SECGROUPS_CONFIG": "/nonexistent/secgroups.toml",
}


class _OtherEngine:
    """Finds the engine at ``path`` (made by scripts/build_checked), and nothing else."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self._path) if name == ENGINE else None


if named := os.environ.get("SECGROUPS_CHECKED_ENGINE"):
    assert ENGINE not in sys.modules, "the installed engine was loaded before this"
    sys.meta_path.insert(0, _OtherEngine(named))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with room for a table, its names and little more."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=4800k", "none", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        # A table that a traceback holds is mapped still.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
