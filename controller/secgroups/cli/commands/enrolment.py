"""``sgctl agent enroll`` and ``sgctl agent revoke``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.errors import CliError

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.command()
@click.argument("agent_id", metavar="ID")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for ca.pem, authority.pem, agent.pem and agent-key.pem; the agent's --tls-dir, or tls in its --state-dir.",
)
@click.pass_obj
def enroll(settings: Settings, agent_id: str, folder: Path) -> None:
    """Get a certificate with which the agent ID subscribes. Its key is made here and stays here.

    Example: sgctl agent enroll hypervisor-1 --out /var/lib/secgroups/tls
    """
    from secgroups.cli.contexts import write_private
    from secgroups.cli.keys import new_key
    from secgroups.cli.kinds import time_text

    key_pem, csr_pem = new_key(agent_id)
    request = pb.EnrollAgentRequest(agent_id=agent_id, csr_pem=csr_pem)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{folder} can't be made: {error.strerror}") from None
    with settings.connect() as client:
        made = client.call_once(client.trust.EnrollAgent, request)
    for name, text in (
        ("ca.pem", made.ca_pem),
        ("authority.pem", made.authority_pem),
        ("agent-key.pem", key_pem),
        ("agent.pem", made.certificate_pem),
    ):
        # An earlier controller does not tell of its authority.
        if text:
            write_private(folder / name, text)
    click.echo(f"agent {agent_id} enrolled until {time_text(made.expires)}; certificate and key are in {folder}")


@click.command()
@click.argument("agent_id", metavar="ID")
@click.pass_obj
def revoke(settings: Settings, agent_id: str) -> None:
    """Revoke all certificates of the agent ID and end its stream. What it has in force stays in force there."""
    with settings.connect() as client:
        count = client.call_once(client.trust.RevokeAgent, pb.RevokeAgentRequest(agent_id=agent_id)).certificates
    click.echo(f"every certificate of agent {agent_id} that was issued until now is revoked; {count} were known and in use")
    if not count:
        click.echo(f"none was known: if {agent_id} was never enrolled, this may be another agent's id misspelt", err=True)
