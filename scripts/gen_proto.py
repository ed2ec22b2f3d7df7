#!/usr/bin/env python3
"""Generate the Python code of proto/secgroups/v1/*.proto beside the protos, or with --check tell which files are stale.

Exit status: 0 written or fresh, 1 stale (the files are named), 2 the generator failed. Run it in the virtual environment of
scripts/install.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent / "proto"
PACKAGE = Path("secgroups/v1")
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the generated files under ``out``; SystemExit(2) if protoc refuses."""
    # The mypy plug-ins lie beside this interpreter, which need not be on PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    include = Path(protoc.__file__).parent / "_proto"
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    outputs = [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{include}", *outputs, *protos]) != 0:
        raise SystemExit(2)
    for services in (out / PACKAGE).glob("*_pb2_grpc.py"):
        # protoc writes the service module of a proto without services too; it holds nothing.
        if "_service_pb2" not in services.name:
            services.unlink()
            services.with_suffix(".pyi").unlink(missing_ok=True)


def stale(fresh: Path) -> list[str]:
    """Names of the committed files that differ from those in ``fresh``, are missing, or should not be there."""
    made = {path.name: path.read_bytes() for pattern in PATTERNS for path in (fresh / PACKAGE).glob(pattern)}
    kept = {path.name: path.read_bytes() for pattern in PATTERNS for path in (ROOT / PACKAGE).glob(pattern)}
    return sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a generated file is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    for name in names:
        print(f"stale: proto/{PACKAGE}/{name}; run scripts/gen_proto.py", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
