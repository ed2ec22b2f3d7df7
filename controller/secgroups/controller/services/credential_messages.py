"""Tokens and certificates as the API shows them: never with what they are proven by."""

from __future__ import annotations

from secgroups.controller.convert import timestamp
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token
from secgroups.v1 import trust_service_pb2 as pb


def token_message(token: Token) -> pb.Token:
    message = pb.Token(
        id=token.id,
        name=token.name,
        role=pb.Role.ValueType(token.role),
        project=token.project,
        created=timestamp(token.created_us),
    )
    if token.expires_us is not None:
        message.expires.CopyFrom(timestamp(token.expires_us))
    return message


def certificate_message(certificate: AgentCertificate) -> pb.AgentCertificate:
    return pb.AgentCertificate(
        agent_id=certificate.agent_id,
        serial=certificate.serial,
        issued=timestamp(certificate.issued_us),
        expires=timestamp(certificate.expires_us),
    )


def revocation_message(revocation: AgentRevocation) -> pb.AgentRevocation:
    return pb.AgentRevocation(agent_id=revocation.agent_id, revoked=timestamp(revocation.revoked_us))
