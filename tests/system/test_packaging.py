"""The wheel holds all of the source and nothing else, and runs from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / name for name in ("proto", "controller", "agent")]
PACKAGES = {"agent", "cli", "controller", "lab", "v1"}
TIMEOUT_S = 120
# What the engine is built of, and what an installation in place leaves beside it.
BUILT_FROM = {".pyx", ".pxi", ".c", ".so"}
# As pyproject.toml asks for.
SETUPTOOLS_MIN = 77


def source_files() -> dict[str, bytes]:
    """Return what is to be installed, by its name within the wheel."""
    found: dict[str, bytes] = {}
    for source in SOURCES:
        for file in source.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in BUILT_FROM:
                name = str(file.relative_to(source))
                assert name not in found, f"{name} is in two of the roots"
                found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built of a copy: building leaves things beside the source."""
    copy, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for source in SOURCES:
        shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.c"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(copy)]
    if setuptools_major() >= SETUPTOOLS_MIN:
        command += ["--no-build-isolation", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    (file,) = made.iterdir()
    return zipfile.ZipFile(file)


def setuptools_major() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


def test_the_namespace_belongs_to_nobody() -> None:
    for source in SOURCES:
        assert [path.name for path in source.iterdir() if path.is_dir() and path.name != "__pycache__"] == ["secgroups"]
        assert not (source / "secgroups" / "__init__.py").exists(), "it would hide the packages of the other roots"
    packages = [
        path for source in SOURCES for path in (source / "secgroups").iterdir() if path.is_dir() and path.name != "__pycache__"
    ]
    assert {path.name for path in packages} == PACKAGES
    for package in packages:
        assert (package / "py.typed").exists(), package


def test_all_protos_have_their_code_beside_them() -> None:
    folder = ROOT / "proto" / "secgroups" / "v1"
    protos = {file.stem: file.read_text() for file in folder.glob("*.proto")}
    services = {name for name, text in protos.items() if "\nservice " in text}
    assert len(services) == 11
    for names, ending in (
        (protos.keys(), "_pb2.py"),
        (protos.keys(), "_pb2.pyi"),
        (services, "_pb2_grpc.py"),
        (services, "_pb2_grpc.pyi"),
    ):
        assert {file.name.removesuffix(ending) for file in folder.glob(f"*{ending}")} == names


def test_the_wheel_is_the_source(wheel: zipfile.ZipFile) -> None:
    packed = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    engine = f"secgroups/agent/_engine{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert packed.pop(engine).startswith(b"\x7fELF")
    assert packed.keys() == source_files().keys()
    assert packed == source_files()


def test_the_wheel_tells_licence_commands_and_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    about = {name.partition("/")[2]: wheel.read(name) for name in wheel.namelist() if ".dist-info/" in name}
    metadata = message_from_bytes(about["METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    commands = {line.split()[0] for line in about["entry_points.txt"].decode().splitlines() if "=" in line}
    assert commands == {"secgroups-controller", "secgroups-agent", "sgctl"}


@pytest.mark.parametrize("module", ["secgroups.controller.__main__", "secgroups.agent.__main__", "secgroups.cli.__main__"])
def test_commands_run_from_the_wheel(tmp_path: Path, wheel: zipfile.ZipFile, module: str) -> None:
    wheel.extractall(tmp_path)
    # Without site: it would bring the source tree in as well.
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {sysconfig.get_path("purelib")!r}, {sysconfig.get_path("platlib")!r}]
import {module}
import secgroups.v1.rule_service_pb2_grpc
assert [*secgroups.__path__] == [{str(tmp_path / "secgroups")!r}], [*secgroups.__path__]
sys.argv = ["command", "--version"]
sys.exit({module}.main())
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert version("secgroups") in done.stdout
