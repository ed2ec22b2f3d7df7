"""The README's example of the firewall in process, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import secgroups.agent

TIMEOUT_S = 60
README = Path(__file__).parents[2] / "README.md"
_PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)


def test_the_example_prints_what_it_says_it_prints() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == _PRINTED.findall(code)


def test_every_name_of_the_package_is_there_and_can_be_found() -> None:
    assert all(getattr(secgroups.agent, name) is not None for name in secgroups.agent.__all__)
    assert set(secgroups.agent.__all__) <= set(dir(secgroups.agent))
