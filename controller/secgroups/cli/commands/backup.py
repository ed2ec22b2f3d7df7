"""``sgctl backup``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.errors import CliError

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.pass_obj
def command(settings: Settings, file: Path, force: bool) -> None:
    """Write a copy of the controller's database to FILE, while changes go on. For admins.

    It comes back with: sgctl restore FILE --data-dir DIR
    """
    if file.exists() and not force:
        raise CliError(f"{file} exists; choose another name, or --force")
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        with settings.connect() as client, os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
            head, digest, size_bytes = pb.BackupHead(), hashlib.sha256(), 0
            complete = False
            for part in client.stream(client.operator.Backup, pb.BackupRequest()):
                match part.WhichOneof("part"):
                    case "head":
                        head = part.head
                    case "data":
                        out.write(part.data)
                        digest.update(part.data)
                        size_bytes += len(part.data)
                    case "sha256":
                        complete = part.sha256 == digest.digest() and size_bytes == head.size_bytes
            if not complete:
                raise CliError(f"the backup did not come whole ({size_bytes} of {head.size_bytes} bytes); try again")
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    click.echo(f"revision {head.revision} of store {head.store_epoch} is in {file} ({size_bytes:,} bytes)")
