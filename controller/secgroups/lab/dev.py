"""``sgctl dev``: a controller and an agent on this machine, up until interrupted, with the next commands to paste."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from secgroups.lab.stack import Stack, StackError

POLL_S = 0.5


@click.command()
@click.option("--listen", default="127.0.0.1:7700", show_default=True, help="Address of the controller; port 0 takes a free one.")
@click.option(
    "--agent", "agent_ids", multiple=True, default=["hypervisor-1"], show_default=True, help="Id of an agent; repeatable."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the data; without it a new one is removed at the end.",
)
def command(listen: str, agent_ids: tuple[str, ...], data_dir: Path | None) -> None:
    """Run a controller and agents here until interrupted.

    Example: sgctl dev --agent hypervisor-1 --agent hypervisor-2
    """
    twice = next((each for each in agent_ids if agent_ids.count(each) > 1), None)
    if twice is not None:
        raise click.UsageError(f"--agent {twice} stands twice: an agent has a folder of its own")
    unfit = next((each for each in agent_ids if "/" in each or each in ("controller", ".", "..")), None)
    if unfit is not None:
        raise click.UsageError(f"--agent {unfit} can't name a folder: no slash, and neither controller nor dots alone")
    # A supervisor ends us with SIGTERM: the processes we started must go with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as cleanup:
        folder = data_dir or Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="secgroups-dev-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack = cleanup.enter_context(Stack(folder, agent_ids, listen=listen))
        except StackError as error:
            raise click.ClickException(str(error)) from None
        _print_next(stack, folder)
        try:
            _watch(stack)
        except KeyboardInterrupt:
            click.echo("stopping", err=True)


def _watch(stack: Stack) -> None:
    """Return never; ClickException if one of the processes ends by itself."""
    while True:
        for process in (stack.controller, *stack.agents.values()):
            if process.popen is not None and process.popen.poll() is not None:
                raise click.ClickException(f"{process.name} ended with {process.popen.returncode}: {process.last_words()}")
        time.sleep(POLL_S)


def _print_next(stack: Stack, folder: Path) -> None:
    controller = stack.controller.address
    first = next(iter(stack.agents))
    click.echo(f"controller    {controller}   (admin {stack.controller.admin_address}, data and logs in {folder})")
    for name, agent in stack.agents.items():
        click.echo(f"agent         {agent.address}   {name}")
    packet = '{"packet": {"server": "default/web-1", "direction": "DIRECTION_INGRESS", '
    packet += '"source": "203.0.113.7", "destination": "10.0.0.9", '
    packet += '"protocol": "PROTOCOL_TCP", "source_port": 40000, "destination_port": 22, "tcp_flags": ["TCP_FLAG_SYN"]}}'
    click.echo(
        f"""
In another terminal:
  export SECGROUPS_CONTROLLER={controller}
  export SECGROUPS_PLAINTEXT=1
  export SECGROUPS_AGENT={stack.agents[first].address}
  sgctl group create web-servers
  sgctl rule add web-servers --preset ssh --remote-ip 203.0.113.0/24
  sgctl server create web-1 --address 10.0.0.9 --agent {first} --group web-servers --wait
  sgctl check --from 203.0.113.7 --to web-1 --protocol tcp --port 22
  grpcurl -plaintext -d '{packet}' {stack.agents[first].address} secgroups.v1.VerdictService/Decide
  sgctl agent flows

Ctrl-C stops everything."""
    )
