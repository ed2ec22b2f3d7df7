"""A flow table in a file is in huge pages where the kernel has them: a look-up waits for its memory, not for page tables."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.settings import EngineSettings

MEMORY = Path("/dev/shm")
HUGE_KB = 2048
SETTINGS = EngineSettings(flows_max=200_000, server_flows_max=1_000)
THP = Path("/sys/kernel/mm/transparent_hugepage")


def is_allowed(switch: str) -> bool:
    """Whether huge pages are given to those who ask."""
    return (THP / switch).is_file() and not {"[never]", "[deny]"} & set((THP / switch).read_text().split())


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def has_shared_memory() -> bool:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return any(kind == "tmpfs" and where == str(MEMORY) for _, where, kind, *_ in mounts) and os.access(MEMORY, os.W_OK)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="secgroups-test-", dir=MEMORY) as made:
        yield Path(made)


def huge_kb(file: Path) -> int:
    """Return how many kB of a file of a tmpfs this process has mapped as huge pages."""
    found, is_asked = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_asked = str(file) in line
        elif is_asked and name == "ShmemPmdMapped:":
            found += int(rest[0])
    return found


@pytest.mark.skipif(not has_shared_memory(), reason=f"{MEMORY} is no tmpfs to write to")
@pytest.mark.skipif(kernel() < (6, 1) or not is_allowed("enabled"), reason="a kernel from 6.1 on, with huge pages, is needed")
def test_a_table_in_a_file_of_a_tmpfs_is_in_huge_pages_however_that_is_mounted(folder: Path) -> None:
    file = folder / "flows"
    table = CompiledTable(SETTINGS, 0, file)
    # All but what is left at the end, and what the kernel could not find free.
    assert huge_kb(file) >= (file.stat().st_size // 1024 - HUGE_KB) // 2
    assert table.file is not None
    table.file.close()
