"""Ctrl-C before sgctl has begun: while it is still being imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from cli_world import PATIENCE_S

# Interrupts itself when the named module is about to be imported.
_START = """
import os, signal, sys

at, before = sys.argv[1:]

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, getattr(signal, before))
sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["rule", "presets", "--help"]
from secgroups.cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("status", "error", "at", "before"),
    [
        (-signal.SIGINT, "", "secgroups.cli.main", "default_int_handler"),
        (-signal.SIGINT, "", "click", "default_int_handler"),
        (130, "\n", "secgroups.cli.commands.rule", "default_int_handler"),  # begun: an end like any other
        (0, "", "click", "SIG_IGN"),  # as shells start what runs in the background
    ],
)
def test_ctrl_c_during_the_start_ends_it_without_a_traceback(status: int, error: str, at: str, before: str) -> None:
    done = subprocess.run([sys.executable, "-c", _START, at, before], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (status, error)
