"""``secgroups-controller restore``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from secgroups.controller.errors import ConfigError
from secgroups.controller.store.backup import restore

DATABASE = "secgroups.db"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def restore_from(arguments: Sequence[str]) -> str:
    """Put a backup in place; return what is told then. ConfigError, StoreFileError if that can't be: nothing has changed."""
    parser = _Parser(
        prog="secgroups-controller restore", description="Put a backup in the place of a database.", allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE", help="what sgctl backup wrote")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="data directory of a controller that does not run")
    parser.add_argument("--create", action="store_true", help="make the data directory if there is none")
    given = parser.parse_args(arguments)
    folder = Path(given.data_dir)
    if given.create:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"data_dir {folder} can't be used: {error.strerror}") from None
    found, kept = restore(Path(given.file), folder / DATABASE)
    told = f"restored at revision {found.revision}, as store {found.store_epoch}; agents are told everything anew when they connect"
    return told + (f"\nwhat was there is kept in {kept}" if kept else "")
