"""Tokens and certificates: kept in the database, and in memory for every call to be checked by.

What is changed is on disk before it counts, and counts before it is answered. Made on an event loop and used from it; only writing
goes on in another thread. Bounded: so many tokens, and so many certificates, of which those that have ended are forgotten.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from secgroups.controller.errors import LimitError, NotFoundError, StoreUnavailableError
from secgroups.controller.store.opening import BUSY_TIMEOUT_MS, unusable
from secgroups.controller.trust.authority import Issued
from secgroups.controller.trust.principals import Principal, Role, ShownCertificate, unauthenticated
from secgroups.controller.trust.tokens import find_id, matches

TOKENS_MAX = 10_000
CERTIFICATES_MAX = 100_000
# One is in use, and one more while it is renewed; an agent that asks again and again must not take the room of all others. Admins
# may enroll one as often as its machine is set up anew.
CERTIFICATES_PER_AGENT_MAX = 16

T = TypeVar("T")


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

    def has_expired(self, now_us: int) -> bool:
        return self.expires_us is not None and self.expires_us <= now_us

    @property
    def principal(self) -> Principal:
        return Principal(key=self.id, role=self.role, project=self.project, expires_us=self.expires_us)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What is kept of one that was issued."""

    agent_id: str
    expires_us: int
    revoked: bool


class Credentials:
    """What is in the database ``path``, whose tables are there already. ``revoked`` is called with the key of a principal.

    StoreFileError if what is kept can't be read or is no token.
    """

    def __init__(self, path: Path, now_us: Callable[[], int], revoked: Callable[[str], None]) -> None:
        self._now_us = now_us
        self._revoked = revoked
        self._writing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._tokens: dict[str, Token] = {}
        self._certificates: dict[str, _Certificate] = {}
        self._serials_by_agent: defaultdict[str, set[str]] = defaultdict(set)
        self._agents_revoked_us: dict[str, int] = {}
        try:
            self._load()
        except (sqlite3.Error, ValueError) as error:
            self._connection.close()
            raise unusable(path, error) from None

    def _load(self) -> None:
        for token_id, name, role, project, created_us, expires_us, hash_ in self._connection.execute(
            "SELECT id, name, role, project, created_us, expires_us, hash FROM tokens ORDER BY id"
        ):
            self._tokens[token_id] = Token(
                id=token_id,
                name=name,
                role=Role(role),
                project=project,
                created_us=created_us,
                expires_us=expires_us,
                hash=hash_,
            )
        for serial, agent_id, expires_us, revoked in self._connection.execute(
            "SELECT serial, agent_id, expires_us, revoked FROM certificates"
        ):
            self._keep_certificate(serial, _Certificate(agent_id, expires_us, bool(revoked)))
        self._agents_revoked_us.update(self._connection.execute("SELECT agent_id, revoked_us FROM revoked_agents"))

    async def close(self) -> None:
        """Let what is being written be written, then close the database."""
        async with self._writing:
            self._connection.close()

    # Who somebody is.

    def find_token(self, text: str) -> Principal | None:
        """Return whose token a text is, None if it is nobody's, or not any more."""
        token = self._tokens.get(find_id(text) or "")
        if token is None or not matches(text, token.hash) or token.has_expired(self._now_us()):
            return None
        return token.principal

    def find_agent(self, shown: ShownCertificate) -> Principal | None:
        """Return the agent with a certificate that the authority has issued, None if it was revoked."""
        known = self._certificates.get(shown.serial)
        if known is None:
            # Issued before the database was put back from a backup; what was revoked since it was issued counts for it too.
            if shown.begins_us <= self._agents_revoked_us.get(shown.agent_id, -1):
                return None
        elif known.revoked:
            return None
        key = f"agent/{shown.agent_id}"
        return Principal(key=key, agent_id=shown.agent_id, expires_us=shown.expires_us, certificate=shown)

    def _check_still_is(self, principal: Principal | None) -> None:
        """Return if who was let in would be let in now. UnauthenticatedError: else a call on its way would outlive a revocation."""
        if principal is None:
            return
        if principal.certificate is not None:
            is_known = self.find_agent(principal.certificate) is not None
        else:
            token = self._tokens.get(principal.key)
            is_known = token is not None and not token.has_expired(self._now_us())
        if not is_known:
            raise unauthenticated()

    # Tokens.

    def tokens(self) -> list[Token]:
        """Return all tokens, in ascending order of id."""
        return [self._tokens[token_id] for token_id in sorted(self._tokens)]

    def has_admin(self) -> bool:
        """Whether there is a token of role admin that is good now."""
        now_us = self._now_us()
        return any(token.role is Role.ADMIN and not token.has_expired(now_us) for token in self._tokens.values())

    def token(self, token_id: str) -> Token:
        """Return a token. NotFoundError."""
        token = self._tokens.get(token_id)
        if token is None:
            raise NotFoundError("token", token_id, message=f"there is no token {token_id}")
        return token

    async def add_token(self, token: Token, by: Principal | None = None) -> None:
        """Keep a new token that ``by`` has asked for. LimitError, StoreUnavailableError, UnauthenticatedError."""
        await self._whole(self._add_token(token, by))

    async def _add_token(self, token: Token, by: Principal | None) -> None:
        async with self._writing:
            self._check_still_is(by)
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
        await self._whole(self._revoke_token(token_id))

    async def _revoke_token(self, token_id: str) -> None:
        async with self._writing:
            self.token(token_id)
            await self._write(("DELETE FROM tokens WHERE id = ?", (token_id,)))
            del self._tokens[token_id]
            self._revoked(token_id)

    # Certificates.

    async def add_certificate(self, agent_id: str, issued: Issued, by: Principal | None = None) -> None:
        """Keep note of a certificate that ``by`` has asked for; those that have ended are forgotten.

        LimitError, StoreUnavailableError, UnauthenticatedError.
        """
        await self._whole(self._add_certificate(agent_id, issued, by))

    async def _add_certificate(self, agent_id: str, issued: Issued, by: Principal | None) -> None:
        now_us = self._now_us()
        async with self._writing:
            self._check_still_is(by)
            self.check_share(agent_id, by)
            if len(self._certificates) >= CERTIFICATES_MAX:
                await self._forget_ended(now_us)
            await self._write(
                (
                    "INSERT INTO certificates (serial, agent_id, issued_us, expires_us, revoked) VALUES (?, ?, ?, ?, 0)",
                    (issued.serial, agent_id, issued.issued_us, issued.expires_us),
                )
            )
            self._keep_certificate(issued.serial, _Certificate(agent_id, issued.expires_us, False))

    def check_share(self, agent_id: str, by: Principal | None) -> None:
        """Return if ``by`` may have one more certificate for an agent: admins always may, an agent has its share. LimitError."""
        if by is None or not by.agent_id:
            return
        now_us = self._now_us()
        held = [self._certificates[serial] for serial in self._serials_by_agent.get(agent_id, ())]
        if sum(1 for each in held if not each.revoked and each.expires_us > now_us) >= CERTIFICATES_PER_AGENT_MAX:
            most = CERTIFICATES_PER_AGENT_MAX
            message = (
                f"{most} certificates of agent {agent_id} are in use, the most that it may renew; revoke it and enroll it again"
            )
            raise LimitError(f"agent/{agent_id}", message, limit="certificates_per_agent_max", most=most)

    async def _forget_ended(self, now_us: int) -> None:
        """Make room. LimitError if all that are kept are in use."""
        await self._write(("DELETE FROM certificates WHERE expires_us <= ?", (now_us,)))
        kept = {serial: each for serial, each in self._certificates.items() if each.expires_us > now_us}
        self._certificates.clear()
        self._serials_by_agent.clear()
        for serial, certificate in kept.items():
            self._keep_certificate(serial, certificate)
        if len(kept) >= CERTIFICATES_MAX:
            message = f"{CERTIFICATES_MAX} certificates are in use, the most allowed"
            raise LimitError("certificates", message, limit="certificates_max", most=CERTIFICATES_MAX)

    def _keep_certificate(self, serial: str, certificate: _Certificate) -> None:
        self._certificates[serial] = certificate
        self._serials_by_agent[certificate.agent_id].add(serial)

    async def revoke_agent(self, agent_id: str) -> int:
        """Revoke all certificates of an agent; return how many were known. LimitError, StoreUnavailableError."""
        return await self._whole(self._revoke_agent(agent_id))

    async def _revoke_agent(self, agent_id: str) -> int:
        now_us = self._now_us()
        async with self._writing:
            if agent_id not in self._agents_revoked_us and len(self._agents_revoked_us) >= CERTIFICATES_MAX:
                message = f"{CERTIFICATES_MAX} agents have been revoked, the most that are kept"
                raise LimitError("revoked agents", message, limit="certificates_max", most=CERTIFICATES_MAX)
            await self._write(
                ("INSERT OR REPLACE INTO revoked_agents (agent_id, revoked_us) VALUES (?, ?)", (agent_id, now_us)),
                ("UPDATE certificates SET revoked = 1 WHERE agent_id = ?", (agent_id,)),
            )
            self._agents_revoked_us[agent_id] = now_us
            count = 0
            for serial in self._serials_by_agent.get(agent_id, ()):
                held = self._certificates[serial]
                count += not held.revoked
                self._certificates[serial] = _Certificate(agent_id, held.expires_us, True)
            self._revoked(f"agent/{agent_id}")
            return count

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """Make a change to its end though its caller goes: what is on disk and what counts must not part."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        try:
            await asyncio.to_thread(self._commit, statements)
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"the store can't be written now ({error}); nothing was changed, try again") from None

    def _commit(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                self._connection.execute(*statement)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
