"""TLS and the token of a connection to a controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

import grpc

from secgroups.cli.errors import CliError, shown

# For what the host itself trusts.
SYSTEM_CA = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """``ca`` is PEM, or "system"; ``token`` is empty for none."""

    ca: str
    token: str = field(repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel is made with. CliError if a token is none."""
        tls = grpc.ssl_channel_credentials(None if self.ca == SYSTEM_CA else self.ca.encode())
        if not self.token:
            return tls
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise CliError("the token is none: one word of printable ASCII is expected in its file")
        return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(self.token))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSecurity:
    """TLS of a connection to an agent, with a certificate for an hour. ``server_name`` is what the agent is checked by."""

    authority_pem: str
    certificate_pem: str
    key_pem: str = field(repr=False)
    server_name: str

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel is made with."""
        authority, key, certificate = (text.encode() for text in (self.authority_pem, self.key_pem, self.certificate_pem))
        return grpc.ssl_channel_credentials(authority, key, certificate)


def check_plaintext(address: str, who: str = "controller", advice: str = "") -> None:
    """Return if ``address`` may be talked to without TLS. CliError if it is neither on loopback nor a Unix socket."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise CliError(f"{who} {shown(address)} is not on loopback; without TLS only loopback and unix:PATH are allowed{advice}")
