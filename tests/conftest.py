"""Load the engine that SECGROUPS_CHECKED_ENGINE names (scripts/build_checked) in place of the installed one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

ENGINE = "secgroups.agent._engine"


class _OtherEngine:
    """Finds the engine at ``path``, and nothing else."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self._path) if name == ENGINE else None


if named := os.environ.get("SECGROUPS_CHECKED_ENGINE"):
    assert ENGINE not in sys.modules, "the installed engine was loaded before this"
    sys.meta_path.insert(0, _OtherEngine(named))
