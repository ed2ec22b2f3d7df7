"""The container image: it is built of what there is, runs as nobody in particular, and starts what can be started."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from secgroups.controller.config import read_config

ROOT = Path(__file__).resolve().parents[2]
# What the wheel is built of; test_packaging builds it of just that.
BUILT_OF = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "proto", "controller", "agent"}

Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage, from its FROM on."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest.strip()))
    return found


def of(stage: list[Instruction], name: str) -> list[str]:
    return [rest for each, rest in stage if each == name]


def the(stage: list[Instruction], name: str) -> str:
    (rest,) = of(stage, name)
    return rest


def test_it_is_built_of_all_that_the_wheel_needs_and_that_is_not_ignored() -> None:
    build, _ = stages()
    copied = {source for rest in of(build, "COPY") for source in shlex.split(rest)[:-1]}
    assert copied == BUILT_OF
    assert all((ROOT / source).exists() for source in copied)
    first, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == BUILT_OF


def test_nothing_that_was_built_here_comes_into_it() -> None:
    ignored = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()]
    for made in ("_engine.cpython-311-x86_64-linux-gnu.so", "__pycache__", "secgroups.egg-info"):
        assert any(fnmatch(made, pattern) for pattern in ignored if pattern != "*"), made
    assert "agent/secgroups/agent/_engine.c" in ignored


def test_compilers_stay_behind() -> None:
    build, image = stages()
    assert "gcc" in " ".join(of(build, "RUN"))
    assert the(build, "FROM").endswith(" AS build")
    # What is installed goes where it was: the programs name their interpreter.
    assert the(image, "COPY") == "--from=build /opt/secgroups /opt/secgroups"
    assert "-m venv /opt/secgroups" in " ".join(of(build, "RUN"))
    assert "apt-get" not in " ".join(of(image, "RUN"))
    assert "/opt/secgroups/bin:" in the(image, "ENV")


def test_it_runs_as_a_user_who_owns_nothing_but_the_data_directory() -> None:
    _, image = stages()
    uid, gid = the(image, "USER").split(":")
    assert int(uid) > 0 < int(gid)
    volume = the(image, "VOLUME")
    assert the(image, "RUN") == f"install -d -o {uid} -g {gid} -m 0700 {volume}"
    names = [name for name, _ in image]
    assert names.index("USER") > names.index("RUN")


def test_what_it_starts_is_a_program_of_ours_with_settings_that_work() -> None:
    _, image = stages()
    (program,) = json.loads(the(image, "ENTRYPOINT"))
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    config = read_config(json.loads(the(image, "CMD")), {})
    assert (config.data_dir, config.create, config.plaintext) == (the(image, "VOLUME"), True, False)
    ports = [address.rpartition(":")[2] for address in (config.listen, config.agent_listen)]
    assert the(image, "EXPOSE").split() == ports
    # Asked about itself by those on its machine alone.
    assert config.admin_listen.startswith("127.0.0.1:")
