"""What the global options say; every command gets it as ``ctx.obj``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secgroups.cli.contexts import Context, config_path, read_contexts
from secgroups.cli.errors import CliError

if TYPE_CHECKING:
    from secgroups.cli.client import AgentClient, Client
    from secgroups.cli.security import AgentSecurity, Security

CONTROLLER_DEFAULT = "127.0.0.1:7700"
AGENT_DEFAULT = "127.0.0.1:7710"
PROJECT_DEFAULT = "default"
TIMEOUT_DEFAULT_S = 10.0
TIMEOUT_MAX_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where to ask, for which project, and how long to wait for an answer.

    ``project_given`` tells whether somebody chose the project; else a file may name it. ``color`` is False if none is wanted.
    """

    controller: str = CONTROLLER_DEFAULT
    ca_file: Path | None = None
    token_file: Path | None = None
    context: Context | None = None
    plaintext: bool = False
    project: str = PROJECT_DEFAULT
    project_given: bool = False
    timeout_s: float = TIMEOUT_DEFAULT_S
    color: bool = True

    def connect(self, project: str | None = None) -> Client:
        """Return a client of the controller, to be used as a context manager. Connects with the first call."""
        from secgroups.cli.client import Client

        return Client(self.controller, project or self.project, self.timeout_s, security=self.security())

    def security(self) -> Security | None:
        """Return how the controller is checked and what it is sent; None in plain text. CliError if that is not known."""
        from secgroups.cli.security import Security, check_plaintext

        if self.plaintext:
            check_plaintext(self.controller)
            return None
        # A token goes to the address that it was kept for, and to no other that an option or a variable names.
        context = self.context if self.context is not None and self.context.address == self.controller else None
        ca = _content(self.ca_file) if self.ca_file else (context.ca if context else "")
        token = _content(self.token_file).strip() if self.token_file else (context.token if context else "")
        if not ca:
            raise CliError(
                f"nothing is known to check controller {self.controller} by",
                [
                    "on its host: sgctl context add NAME --from DATA_DIR",
                    "elsewhere: sgctl context add NAME --address HOST:PORT --ca-file FILE --token-file FILE",
                    "for a controller that was started with --plaintext: sgctl --plaintext",
                ],
            )
        return Security(ca=ca, token=token)

    def connect_agent(self, address: str) -> AgentClient:
        """Return a client of the agent at ``address``, to be used as a context manager.

        ``AGENT_ID@HOST:PORT`` is one that is checked to be this agent, and shown a certificate that the controller issues for it.
        """
        from secgroups.cli.client import AgentClient, check_address
        from secgroups.cli.security import check_plaintext

        agent_id, _, where = ("", "", address) if address.startswith("unix:") else address.rpartition("@")
        if not agent_id:
            check_address(where, "agent")
            check_plaintext(where, "agent", "; elsewhere it is asked as AGENT_ID@HOST:PORT")
            return AgentClient(where, self.timeout_s)
        return AgentClient(where, self.timeout_s, security=self._agent_security(agent_id))

    def _agent_security(self, agent_id: str) -> AgentSecurity:
        from secgroups.cli import pb
        from secgroups.cli.keys import new_key
        from secgroups.cli.security import AgentSecurity

        # Neither is ever on disk, and what is forgotten need not be revoked.
        key_pem, csr_pem = new_key("operator")
        with self.connect() as client:
            request = pb.IssueOperatorCertificateRequest(agent_id=agent_id, csr_pem=csr_pem)
            made = client.call(client.trust.IssueOperatorCertificate, request)
        return AgentSecurity(
            authority_pem=made.authority_pem,
            certificate_pem=made.certificate_pem,
            key_pem=key_pem,
            server_name=made.agent_server_name,
        )


def chosen_context(name: str) -> Context:
    """Return the context of that name, without one the current, without that one an empty one. CliError, NotFoundError."""
    contexts = read_contexts(config_path())
    name = name or contexts.current
    return contexts.get(name) if name else Context(address=CONTROLLER_DEFAULT)


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CliError(f"{path} can't be read: {reason}") from None
