"""``sgctl restore``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data-dir", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Of a controller that does not run."
)
@click.option("--create", is_flag=True, help="Make the data directory if there is none.")
def command(file: Path, data_dir: Path, create: bool) -> None:
    """Put what sgctl backup wrote in the place of a database, on the machine of a controller that does not run.

    Agents are told everything anew when they connect. What was there is kept under another name.

    Example: sgctl restore secgroups.backup --data-dir /var/lib/secgroups-controller
    """
    # It is the controller's own work, on its files; it says itself what it did, or why not, with its exit status.
    flags = ["--create"] if create else []
    controller = ["-m", "secgroups.controller", "restore", *flags, "--data-dir", str(data_dir), "--", str(file)]
    os.execv(sys.executable, [sys.executable, *controller])  # noqa: S606 - nothing is left of this process
