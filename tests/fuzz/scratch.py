"""A folder in memory for what a target reads from files; it goes with the process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")


def scratch_folder() -> Path:
    """Return a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="secgroups-fuzz-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
