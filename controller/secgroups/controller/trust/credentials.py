"""Tokens and certificates: kept in the database, and in memory for every call to be checked by.

What is changed is on disk before it counts, and counts before it is answered. Made on an event loop and used from it; only writing
goes on in another thread. Bounded: so many tokens, and so many certificates, of which those that have ended are forgotten.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secgroups.controller.errors import LimitError, NotFoundError, StoreUnavailableError
from secgroups.controller.store.opening import BUSY_TIMEOUT_MS
from secgroups.controller.trust.authority import Issued
from secgroups.controller.trust.principals import Principal, Role
from secgroups.controller.trust.tokens import find_id, matches

TOKENS_MAX = 10_000
CERTIFICATES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token without its text. ``expires_us`` is None if it never does."""

    id: str
    name: str
    role: Role
    project: str
    created_us: int
    expires_us: int | None
    hash: bytes

    @property
    def principal(self) -> Principal:
        return Principal(key=self.id, role=self.role, project=self.project, expires_us=self.expires_us)


class Credentials:
    """What is in the database ``path``, whose tables are there already. ``revoked`` is called with the key of a principal."""

    def __init__(self, path: Path, now_us: Callable[[], int], revoked: Callable[[str], None]) -> None:
        self._now_us = now_us
        self._revoked = revoked
        self._writing = asyncio.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        self._connection.execute("PRAGMA synchronous = FULL")
        columns = "id, name, role, project, created_us, expires_us, hash"
        self._tokens = {
            row[0]: Token(
                id=row[0], name=row[1], role=Role(row[2]), project=row[3], created_us=row[4], expires_us=row[5], hash=row[6]
            )
            for row in self._connection.execute(f"SELECT {columns} FROM tokens ORDER BY id")  # noqa: S608
        }
        # By serial: agent, end, whether it was revoked.
        self._certificates: dict[str, tuple[str, int, bool]] = {
            serial: (agent_id, expires_us, bool(revoked))
            for serial, agent_id, expires_us, revoked in self._connection.execute(
                "SELECT serial, agent_id, expires_us, revoked FROM certificates"
            )
        }

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # Who somebody is.

    def find_token(self, text: str) -> Principal | None:
        """Return whose token a text is, None if it is nobody's, or not any more."""
        token = self._tokens.get(find_id(text) or "")
        if token is None or not matches(text, token.hash):
            return None
        if token.expires_us is not None and token.expires_us <= self._now_us():
            return None
        return token.principal

    def find_agent(self, agent_id: str, serial: str) -> Principal | None:
        """Return the agent with a certificate that the authority has issued, None if it was revoked."""
        _, expires_us, revoked = self._certificates.get(serial, (agent_id, None, False))
        # One that is not known was issued before the database was put back from a backup.
        return None if revoked else Principal(key=f"agent/{agent_id}", agent_id=agent_id, expires_us=expires_us)

    # Tokens.

    def tokens(self) -> list[Token]:
        """Return all tokens, in ascending order of id."""
        return [self._tokens[token_id] for token_id in sorted(self._tokens)]

    def token(self, token_id: str) -> Token:
        """Return a token. NotFoundError."""
        token = self._tokens.get(token_id)
        if token is None:
            raise NotFoundError("token", token_id, message=f"there is no token {token_id}")
        return token

    async def add_token(self, token: Token) -> None:
        """Keep a new token. LimitError, StoreUnavailableError."""
        async with self._writing:
            if len(self._tokens) >= TOKENS_MAX:
                message = f"{len(self._tokens)} tokens are kept, the most allowed is {TOKENS_MAX}; revoke some"
                raise LimitError("tokens", message, limit="tokens_max", most=TOKENS_MAX)
            values = (token.id, token.name, int(token.role), token.project, token.created_us, token.expires_us, token.hash)
            await self._write(
                ("INSERT INTO tokens (id, name, role, project, created_us, expires_us, hash) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            )
            self._tokens[token.id] = token

    async def revoke_token(self, token_id: str) -> None:
        """Forget a token. NotFoundError, StoreUnavailableError."""
        async with self._writing:
            self.token(token_id)
            await self._write(("DELETE FROM tokens WHERE id = ?", (token_id,)))
            del self._tokens[token_id]
        self._revoked(token_id)

    # Certificates.

    async def add_certificate(self, agent_id: str, issued: Issued) -> None:
        """Keep note of a certificate; those that have ended are forgotten. LimitError, StoreUnavailableError."""
        now_us = self._now_us()
        async with self._writing:
            if len(self._certificates) >= CERTIFICATES_MAX:
                await self._write(("DELETE FROM certificates WHERE expires_us <= ?", (now_us,)))
                self._certificates = {key: value for key, value in self._certificates.items() if value[1] > now_us}
                if len(self._certificates) >= CERTIFICATES_MAX:
                    message = f"{CERTIFICATES_MAX} certificates are in use, the most allowed"
                    raise LimitError("certificates", message, limit="certificates_max", most=CERTIFICATES_MAX)
            await self._write(
                (
                    "INSERT INTO certificates (serial, agent_id, issued_us, expires_us, revoked) VALUES (?, ?, ?, ?, 0)",
                    (issued.serial, agent_id, issued.issued_us, issued.expires_us),
                )
            )
            self._certificates[issued.serial] = (agent_id, issued.expires_us, False)

    async def revoke_agent(self, agent_id: str) -> int:
        """Revoke all certificates of an agent; return how many. NotFoundError if none was issued, StoreUnavailableError."""
        async with self._writing:
            held = [serial for serial, (owner, _, revoked) in self._certificates.items() if owner == agent_id and not revoked]
            if not held:
                message = f"no certificate of agent {agent_id} is in use"
                raise NotFoundError("agent", agent_id, message=message)
            await self._write(("UPDATE certificates SET revoked = 1 WHERE agent_id = ?", (agent_id,)))
            for serial in held:
                self._certificates[serial] = (agent_id, self._certificates[serial][1], True)
        self._revoked(f"agent/{agent_id}")
        return len(held)

    async def _write(self, statement: tuple[str, tuple[Any, ...]]) -> None:
        try:
            await asyncio.to_thread(self._connection.execute, *statement)
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"the store can't be written now ({error}); nothing was changed, try again") from None
