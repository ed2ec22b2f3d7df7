"""Who calls, and what that may do: the table of every call of the API."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from secgroups.controller.errors import NotFoundError, PermissionDeniedError, UnauthenticatedError


class Role(IntEnum):
    """Roles of tokens, ascending. The numbers are those of the API and of the store."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3


class Needs(IntEnum):
    """What a call needs: a role, in the project that it names if it names one; any token or certificate; or an agent's."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3
    ANYBODY = 4
    AGENT = 5
    # Admins, and an agent for itself.
    ADMIN_OR_AGENT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCertificate:
    """An agent's certificate that TLS has verified. ``serial`` in lower-case hexadecimal; it is good from ``begins_us`` on."""

    agent_id: str
    serial: str
    begins_us: int
    expires_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a token, or an agent with a certificate. Times in microseconds since the epoch.

    ``key`` is what is revoked: the id of the token, or ``agent/`` and the id of the agent. ``expires_us`` is None if it never does.
    ``certificate`` is what an agent has shown.
    """

    key: str
    role: Role | None = None
    project: str = ""
    agent_id: str = ""
    expires_us: int | None = None
    certificate: ShownCertificate | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


# Who makes the call that is under way; None in plain text, where nobody is asked.
caller: ContextVar[Principal | None] = ContextVar("caller", default=None)

_SERVICE = "/secgroups.v1."
ACCESS = {
    f"{_SERVICE}{method}": needs
    for needs, methods in {
        Needs.VIEWER: (
            "GroupService/GetGroup",
            "GroupService/ListGroups",
            "RuleService/GetRule",
            "RuleService/ListRules",
            "RuleService/ListPresets",
            "ServerService/GetServer",
            "ServerService/ListServers",
            "AttachmentService/ListAttachments",
            "RulesetService/GetEffectiveRuleset",
            "RulesetService/WatchEffectiveRuleset",
            "RulesetService/ExplainFlow",
            "RulesetService/WaitForRevision",
            "LimitService/GetLimits",
            "AuditService/ListChanges",
            "AuditService/WatchChanges",
        ),
        Needs.EDITOR: (
            "GroupService/CreateGroup",
            "GroupService/UpdateGroup",
            "GroupService/DeleteGroup",
            "RuleService/CreateRule",
            "RuleService/BatchCreateRules",
            "RuleService/UpdateRule",
            "RuleService/DeleteRule",
            "RuleService/ReplaceRules",
            "ServerService/CreateServer",
            "ServerService/UpdateServer",
            "ServerService/DeleteServer",
            "AttachmentService/AttachGroup",
            "AttachmentService/DetachGroup",
            "AttachmentService/SetServerGroups",
        ),
        Needs.ADMIN: (
            "AgentService/ListAgents",
            "AgentService/GetAgent",
            "LimitService/UpdateLimits",
            "LimitService/ListLimitOverrides",
            "OperatorService/Backup",
            "OperatorService/GetStatus",
            "TrustService/CreateToken",
            "TrustService/ListTokens",
            "TrustService/RevokeToken",
            "TrustService/RevokeAgent",
            "TrustService/IssueOperatorCertificate",
        ),
        Needs.ANYBODY: ("TrustService/WhoAmI",),
        Needs.AGENT: ("AgentService/Subscribe",),
        Needs.ADMIN_OR_AGENT: ("TrustService/EnrollAgent",),
    }.items()
    for method in methods
}


def check(principal: Principal, needs: Needs, request: object) -> None:
    """Return if a call may be made. NotFoundError if it is about another project, PermissionDeniedError if the role is too low.

    That another project exists, or does not, shows in nothing.
    """
    if needs is Needs.ANYBODY or (
        needs is Needs.ADMIN_OR_AGENT and principal.agent_id and principal.agent_id == _agent_of(request)
    ):
        return
    if needs is Needs.AGENT:
        if not principal.agent_id:
            raise PermissionDeniedError("only an agent may do this, with a certificate from sgctl agent enroll")
        return
    if principal.role is None:
        raise PermissionDeniedError(
            f"agent {principal.agent_id} may subscribe as itself and renew its certificate, and nothing else"
        )
    if principal.is_admin:
        return
    project = getattr(request, "project", None)
    if needs in (Needs.ADMIN, Needs.ADMIN_OR_AGENT):
        raise PermissionDeniedError("this needs a token of role admin")
    if project is not None and project != principal.project:
        raise NotFoundError("project", project, message=f"there is no project {project}")
    if principal.role < needs:
        raise PermissionDeniedError(f"this needs a token of role {Role(needs).name.lower()} of project {principal.project}")


def check_is_agent(agent_id: str) -> None:
    """Return if the caller is this agent, or nobody is asked. PermissionDeniedError if it is another one."""
    principal = caller.get()
    if principal is not None and principal.agent_id != agent_id:
        raise PermissionDeniedError(f"the certificate is that of agent {principal.agent_id}, which can't subscribe as {agent_id}")


def unauthenticated() -> UnauthenticatedError:
    """Return what everybody is told who is not known, whatever the reason: a guess must not teach anything."""
    return UnauthenticatedError("no token (authorization: Bearer TOKEN) or certificate was sent, or it has expired or was revoked")


def _agent_of(request: object) -> str:
    return str(getattr(request, "agent_id", ""))
