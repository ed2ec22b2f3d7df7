"""What is kept of tokens and of the certificates of agents, as values. Times are microseconds since the Unix epoch (``_us``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from secgroups.controller.trust.principals import Principal, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token without its text. ``expires_us`` is None if it never does. ``hash`` is empty in the change log."""

    id: str
    name: str
    role: Role
    project: str
    created_us: int
    expires_us: int | None
    hash: bytes = field(default=b"", repr=False)

    def has_expired(self, now_us: int) -> bool:
        return self.expires_us is not None and self.expires_us <= now_us

    @property
    def principal(self) -> Principal:
        return Principal(key=self.id, role=self.role, project=self.project, expires_us=self.expires_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCertificate:
    """A certificate that was issued to an agent; ``serial`` in lower-case hexadecimal."""

    project: ClassVar[str] = ""
    serial: str
    agent_id: str
    issued_us: int
    expires_us: int
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRevocation:
    """Since when no earlier certificate of an agent counts, known or not."""

    project: ClassVar[str] = ""
    agent_id: str
    revoked_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCredentials:
    """All of them."""

    tokens: list[Token] = field(default_factory=list)
    certificates: list[AgentCertificate] = field(default_factory=list)
    revocations: list[AgentRevocation] = field(default_factory=list)
