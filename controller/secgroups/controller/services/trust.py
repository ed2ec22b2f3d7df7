"""TrustService: tokens, and certificates of agents."""

from __future__ import annotations

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks
from secgroups.controller.convert import required, timestamp
from secgroups.controller.errors import InvalidError
from secgroups.controller.model import check_name
from secgroups.controller.services.credential_messages import token_message
from secgroups.controller.services.mutation import Context, actor_of_call
from secgroups.controller.trust.authority import Authority, agent_server_name
from secgroups.controller.trust.credentials import Credentials
from secgroups.controller.trust.kept import Token
from secgroups.controller.trust.principals import Role, caller
from secgroups.controller.trust.tokens import new_token
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceServicer

LIFETIME_S_MAX = 3_650 * 24 * 3_600
NAME_CHARACTERS_MAX = 128


class TrustService(TrustServiceServicer):
    """Whom the gate lets in. ``ca_pem`` is what agents check the controller by."""

    def __init__(self, credentials: Credentials, authority: Authority, ca_pem: bytes, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        self._credentials = credentials
        self._authority = authority
        self._ca_pem = ca_pem
        self._clocks = clocks

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        token_id, text, kept = new_token()
        role, project = _role_of(request)
        now_us = self._clocks.now_us()
        token = Token(
            id=token_id,
            name=_name_of(request),
            role=role,
            project=project,
            created_us=now_us,
            expires_us=_expires_us(request, now_us),
            hash=kept,
        )
        await self._credentials.add_token(token, caller.get(), actor_of_call(context))
        return pb.CreateTokenResponse(token=token_message(token), text=text)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        return pb.ListTokensResponse(tokens=[token_message(token) for token in self._credentials.tokens()])

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        await self._credentials.revoke_token(required(request.id, "id"), actor_of_call(context))
        return pb.RevokeTokenResponse()

    async def EnrollAgent(self, request: pb.EnrollAgentRequest, context: Context) -> pb.EnrollAgentResponse:
        check_name(request.agent_id, "agent_id")
        # Before anything is signed: an agent that may have no more must not keep the controller busy.
        self._credentials.check_share(request.agent_id, caller.get())
        issued = self._authority.issue(request.agent_id, request.csr_pem)
        await self._credentials.add_certificate(request.agent_id, issued, caller.get(), actor_of_call(context))
        return pb.EnrollAgentResponse(
            certificate_pem=issued.certificate_pem.decode(),
            ca_pem=self._ca_pem.decode(),
            expires=timestamp(issued.expires_us),
            authority_pem=self._authority.ca_pem.decode(),
        )

    async def IssueOperatorCertificate(
        self, request: pb.IssueOperatorCertificateRequest, context: Context
    ) -> pb.IssueOperatorCertificateResponse:
        check_name(request.agent_id, "agent_id")
        principal = caller.get()
        issued = self._authority.issue_operator(principal.key if principal else "", request.csr_pem)
        return pb.IssueOperatorCertificateResponse(
            certificate_pem=issued.certificate_pem.decode(),
            authority_pem=self._authority.ca_pem.decode(),
            agent_server_name=agent_server_name(request.agent_id),
            expires=timestamp(issued.expires_us),
        )

    async def RevokeAgent(self, request: pb.RevokeAgentRequest, context: Context) -> pb.RevokeAgentResponse:
        count = await self._credentials.revoke_agent(required(request.agent_id, "agent_id"), actor_of_call(context))
        return pb.RevokeAgentResponse(certificates=count)

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIResponse:
        principal = caller.get()
        if principal is None:
            return pb.WhoAmIResponse()
        if principal.agent_id:
            return pb.WhoAmIResponse(agent_id=principal.agent_id)
        return pb.WhoAmIResponse(token=token_message(self._credentials.token(principal.key)))


def _name_of(request: pb.CreateTokenRequest) -> str:
    name = required(request.name, "name")
    if len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidError("name", f"has {len(name)} characters, must be 1 to {NAME_CHARACTERS_MAX} that can be printed")
    return name


def _role_of(request: pb.CreateTokenRequest) -> tuple[Role, str]:
    try:
        role = Role(request.role)
    except ValueError:
        raise InvalidError("role", "must be one of ROLE_VIEWER, ROLE_EDITOR, ROLE_ADMIN") from None
    if role is Role.ADMIN:
        if request.project:
            raise InvalidError("project", "must be empty: an admin is one of all projects")
        return role, ""
    check_name(request.project, "project")
    return role, request.project


def _expires_us(request: pb.CreateTokenRequest, now_us: int) -> int | None:
    if not request.HasField("lifetime"):
        return None
    try:
        lifetime_us = request.lifetime.ToMicroseconds()
    except ValueError:
        lifetime_us = -1
    if not 1_000_000 <= lifetime_us <= LIFETIME_S_MAX * 1_000_000:
        raise InvalidError("lifetime", f"must be 1 second to {LIFETIME_S_MAX} seconds")
    return now_us + lifetime_us
