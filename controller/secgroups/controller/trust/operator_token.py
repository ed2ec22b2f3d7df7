"""The operator's token: the one of role admin whose text lies in the data directory, for whoever owns the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from secgroups.controller.errors import ConfigError
from secgroups.controller.trust.authority import write_private
from secgroups.controller.trust.credentials import Credentials
from secgroups.controller.trust.kept import Token
from secgroups.controller.trust.principals import Role
from secgroups.controller.trust.tokens import new_token

NAME = "operator"


async def make_operator_token(
    path: Path, credentials: Credentials, now_us: int, *, actor: str, instead_of: Iterable[Token] = ()
) -> None:
    """Write a new one to ``path`` and revoke ``instead_of``. ConfigError if it can't be written; errors of ``credentials``.

    Whatever ends it half way, doing it again makes good.
    """
    token_id, text, kept = new_token()
    try:
        # The file first: a token that nobody has the text of would be the last one made.
        await asyncio.to_thread(write_private, path, text.encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"operator token {path} can't be written: {error.strerror}") from None
    for token in instead_of:
        await credentials.revoke_token(token.id, actor)
    made = Token(id=token_id, name=NAME, role=Role.ADMIN, project="", created_us=now_us, expires_us=None, hash=kept)
    await credentials.add_token(made, actor=actor)
