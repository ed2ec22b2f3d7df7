"""``secgroups-controller reset-operator-token``: the way back for whoever has lost it and owns the machine."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from secgroups.controller.clocks import SYSTEM_CLOCKS
from secgroups.controller.core import Core
from secgroups.controller.errors import ConfigError, LimitError, StoreUnavailableError
from secgroups.controller.logs import set_up_logs
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.trust.credentials import Credentials
from secgroups.controller.trust.operator_token import NAME, make_operator_token
from secgroups.controller.trust.principals import Role

COMMAND = "reset-operator-token"
DATABASE = "secgroups.db"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def reset_operator_token(arguments: Sequence[str]) -> str:
    """Make the operator's token anew and revoke those before; return what is told then.

    ConfigError, StoreFileError if that can't be, as while a controller uses the database.
    """
    parser = _Parser(
        prog=f"secgroups-controller {COMMAND}",
        description=f"Make the operator's token anew, and revoke every token of role admin that is called {NAME}.",
        allow_abbrev=False,
    )
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="data directory of a controller that does not run")
    folder = Path(parser.parse_args(arguments).data_dir)
    path = folder / "trust" / "operator.token"
    for needed in (folder / DATABASE, path.parent):
        if not needed.exists():
            raise ConfigError(f"data_dir {folder} has no {needed.name}; name that of a controller that was started with TLS")
    set_up_logs("error")
    try:
        count = asyncio.run(_reset(folder, path))
        _give_to_owner(folder, [path, *folder.glob(f"{DATABASE}*")])
    except (StoreUnavailableError, LimitError) as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{error.filename} can't be given to the owner of {folder}: {error.strerror}") from None
    return f"the operator's token is in {path}; tokens revoked in its place: {count}"


def _give_to_owner(folder: Path, made: Iterable[Path]) -> None:
    """Give what root may have made to the owner of ``folder``: the controller, which is somebody else, has to write it."""
    owner = folder.stat()
    if os.geteuid() == 0 != owner.st_uid:
        for path in made:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


async def _reset(folder: Path, path: Path) -> int:
    """Return how many were revoked."""
    core = Core(SqliteStore(folder / DATABASE))
    try:
        credentials = Credentials(core, SYSTEM_CLOCKS.now_us, lambda _: None)
        old = [token for token in credentials.tokens() if token.role is Role.ADMIN and token.name == NAME]
        await make_operator_token(path, credentials, SYSTEM_CLOCKS.now_us(), actor=COMMAND, instead_of=old)
        return len(old)
    finally:
        await core.close()
