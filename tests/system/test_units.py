"""The systemd units: what they start can be started so, systemd takes them, and they leave little exposed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secgroups.agent.config import read_config as read_agent_config
from secgroups.controller.config import read_config as read_controller_config

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
# By systemd's own measure, 0 to 10.
EXPOSURE_MAX = 2.0


def started(name: str) -> list[str]:
    """Return the arguments that a unit starts its program with."""
    (line,) = re.findall(r"^ExecStart=(.*)$", (UNITS / f"{name}.service").read_text(), re.MULTILINE)
    program, *arguments = shlex.split(line.replace("%S", "/var/lib").replace("%t", "/run"))
    assert Path(program).name == name
    return arguments


def test_the_programs_know_what_they_are_started_with() -> None:
    controller = read_controller_config(started("secgroups-controller"), {})
    assert (controller.plaintext, controller.create, controller.data_dir) == (False, True, "/var/lib/secgroups-controller")
    agent = read_agent_config(started("secgroups-agent"), {"SECGROUPS_AGENT_AGENT_ID": "a"})
    assert (agent.plaintext, agent.state_dir) == (False, "/var/lib/secgroups-agent")
    (enforced,) = re.findall(
        r"^Environment=(\w+)=(\w+)$", (UNITS / "secgroups-agent.service.d" / "kernel.conf").read_text(), re.MULTILINE
    )
    assert (
        read_agent_config(started("secgroups-agent"), {"SECGROUPS_AGENT_AGENT_ID": "a", enforced[0]: enforced[1]}).enforce
        == "nftables"
    )


@pytest.mark.parametrize("name", ["secgroups-controller", "secgroups-agent"])
def test_they_count_as_started_when_they_serve_and_are_reloaded_by_sighup(name: str) -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", (UNITS / f"{name}.service").read_text(), re.MULTILINE))
    assert (settings["Type"], settings["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")
    # What they say of it goes through a Unix socket.
    assert "AF_UNIX" in settings["RestrictAddressFamilies"].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("name", ["secgroups-controller", "secgroups-agent"])
def test_systemd_takes_them_and_finds_little_exposed(tmp_path: Path, name: str) -> None:
    unit = tmp_path / f"{name}.service"
    # As installed here, which is somewhere else.
    unit.write_text((UNITS / unit.name).read_text().replace(f"/usr/bin/{name}", str(Path(sys.executable).parent / name)))
    taken = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (taken.returncode, taken.stderr) == (0, "")
    told = subprocess.run(["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True, check=False)
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told.stdout)
    assert float(exposure) <= EXPOSURE_MAX
