"""Tokens and certificates: kept in the database, and in memory for every call to be checked by.

What is changed is on disk and in the change log before it counts, and counts before it is answered. Made on an event loop and used
from it. Bounded: so many tokens, and so many certificates, of which those that have ended are forgotten.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from secgroups.controller.errors import LimitError, NotFoundError
from secgroups.controller.trust.authority import Issued
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token
from secgroups.controller.trust.principals import Principal, Role, ShownCertificate, unauthenticated
from secgroups.controller.trust.tokens import find_id, matches

if TYPE_CHECKING:
    from secgroups.controller.core import Core
    from secgroups.controller.store.interface import Transaction

TOKENS_MAX = 10_000
CERTIFICATES_MAX = 100_000
# One is in use, and one more while it is renewed; an agent that asks again and again must not take the room of all others. Admins
# may enroll one as often as its machine is set up anew.
CERTIFICATES_PER_AGENT_MAX = 16

T = TypeVar("T")


class Credentials:
    """Those of ``core``, which keeps them. ``revoked`` is called with the key of a principal."""

    def __init__(self, core: Core, now_us: Callable[[], int], revoked: Callable[[str], None]) -> None:
        self._core = core
        self._now_us = now_us
        self._revoked = revoked
        self._writing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        kept = core.credentials_at_start
        self._tokens = {token.id: token for token in kept.tokens}
        self._certificates: dict[str, AgentCertificate] = {}
        self._serials_by_agent: defaultdict[str, set[str]] = defaultdict(set)
        for certificate in kept.certificates:
            self._keep_certificate(certificate)
        self._revocations = {revocation.agent_id: revocation for revocation in kept.revocations}

    async def close(self) -> None:
        """Let what is being written be written."""
        async with self._writing:
            return

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
            revocation = self._revocations.get(shown.agent_id)
            if revocation is not None and shown.begins_us <= revocation.revoked_us:
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

    async def add_token(self, token: Token, by: Principal | None = None, actor: str = "") -> None:
        """Keep a new token that ``by`` has asked for. LimitError, StoreUnavailableError, UnauthenticatedError.

        ``actor`` is what the change log keeps of who that is, here and below.
        """
        await self._whole(self._add_token(token, by, actor))

    async def _add_token(self, token: Token, by: Principal | None, actor: str) -> None:
        async with self._writing:
            self._check_still_is(by)
            if len(self._tokens) >= TOKENS_MAX:
                message = f"{len(self._tokens)} tokens are kept, the most allowed is {TOKENS_MAX}; revoke some"
                raise LimitError("tokens", message, limit="tokens_max", most=TOKENS_MAX)
            await self._write(lambda tx: tx.add_token(token), actor)
            self._tokens[token.id] = token

    async def revoke_token(self, token_id: str, actor: str = "") -> None:
        """Forget a token. NotFoundError, StoreUnavailableError."""
        await self._whole(self._revoke_token(token_id, actor))

    async def _revoke_token(self, token_id: str, actor: str) -> None:
        async with self._writing:
            token = self.token(token_id)
            await self._write(lambda tx: tx.delete_token(token), actor)
            del self._tokens[token_id]
            self._revoked(token_id)

    # Certificates.

    async def add_certificate(self, agent_id: str, issued: Issued, by: Principal | None = None, actor: str = "") -> None:
        """Keep note of a certificate that ``by`` has asked for; those that have ended are forgotten.

        LimitError, StoreUnavailableError, UnauthenticatedError.
        """
        made = AgentCertificate(serial=issued.serial, agent_id=agent_id, issued_us=issued.issued_us, expires_us=issued.expires_us)
        await self._whole(self._add_certificate(made, by, actor))

    async def _add_certificate(self, made: AgentCertificate, by: Principal | None, actor: str) -> None:
        now_us = self._now_us()
        async with self._writing:
            self._check_still_is(by)
            self.check_share(made.agent_id, by)
            kept = None
            if len(self._certificates) >= CERTIFICATES_MAX:
                kept = [each for each in self._certificates.values() if each.expires_us > now_us]
                if len(kept) >= CERTIFICATES_MAX:
                    message = f"{CERTIFICATES_MAX} certificates are in use, the most allowed"
                    raise LimitError("certificates", message, limit="certificates_max", most=CERTIFICATES_MAX)

            def add(tx: Transaction) -> None:
                if kept is not None:
                    tx.forget_certificates(now_us)
                tx.add_certificate(made)

            await self._write(add, actor)
            if kept is not None:
                self._certificates.clear()
                self._serials_by_agent.clear()
                for each in kept:
                    self._keep_certificate(each)
            self._keep_certificate(made)

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

    def _keep_certificate(self, certificate: AgentCertificate) -> None:
        self._certificates[certificate.serial] = certificate
        self._serials_by_agent[certificate.agent_id].add(certificate.serial)

    async def revoke_agent(self, agent_id: str, actor: str = "") -> int:
        """Revoke all certificates of an agent; return how many were known. LimitError, StoreUnavailableError."""
        return await self._whole(self._revoke_agent(agent_id, actor))

    async def _revoke_agent(self, agent_id: str, actor: str) -> int:
        now_us = self._now_us()
        async with self._writing:
            before = self._revocations.get(agent_id)
            if before is None and len(self._revocations) >= CERTIFICATES_MAX:
                message = f"{CERTIFICATES_MAX} agents have been revoked, the most that are kept"
                raise LimitError("revoked agents", message, limit="certificates_max", most=CERTIFICATES_MAX)
            after = AgentRevocation(agent_id=agent_id, revoked_us=now_us)
            await self._write(lambda tx: tx.revoke_agent(before, after), actor)
            self._revocations[agent_id] = after
            count = 0
            for serial in self._serials_by_agent.get(agent_id, ()):
                held = self._certificates[serial]
                count += not held.revoked
                self._certificates[serial] = replace(held, revoked=True)
            self._revoked(f"agent/{agent_id}")
            return count

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """Make a change to its end though its caller goes: what is on disk and what counts must not part."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _write(self, operation: Callable[[Transaction], None], actor: str) -> None:
        # Whoever floods the controller with changes must not keep an admin from revoking what that is done with.
        await self._core.change(operation, actor=actor, urgent=True)
