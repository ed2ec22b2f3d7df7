"""The data directory of a controller of this machine: who can read it, whose it is, and the room on its disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from secgroups.cli.diagnosis.controller import judge_room
from secgroups.cli.diagnosis.finding import Finding, some

DATABASE = "secgroups.db"
TRUST = "trust"
# What is secret there; certificates are not.
_SECRETS = ("*-key.pem", "*.token")
_OPEN_BITS = 0o077


def look_at_data_dir(folder: Path) -> Iterator[Finding]:
    """Yield what is wrong with a data directory. Changes nothing."""
    try:
        entries = [folder, *sorted(folder.iterdir())]
        trust = folder / TRUST
        secrets = sorted(file for pattern in _SECRETS for file in trust.glob(pattern))
        entries += secrets
        found = {path: path.stat() for path in entries}
        disk = os.statvfs(folder)
    except OSError as error:
        advice = "name the --data-dir of the controller; it is made by --create"
        if isinstance(error, PermissionError):
            advice = "run this as the controller's user, or as root"
        yield Finding(what="DATA_DIR_UNREADABLE", text=f"{error.filename} can't be read: {error.strerror}", advice=advice)
        return
    database = folder / DATABASE
    if database not in found:
        yield Finding(
            what="DATA_DIR_EMPTY",
            text=f"{folder} has no {DATABASE}",
            advice="name the --data-dir of the controller, or put a backup back: secgroups-controller restore",
        )
    if found[folder].st_mode & _OPEN_BITS:
        yield Finding(
            what="DATA_DIR_OPEN",
            text=f"others than its owner can enter {folder}: the database has everybody's rules in it",
            advice=f"chmod 700 {folder}",
        )
    if opened := [str(path) for path in secrets if found[path].st_mode & _OPEN_BITS]:
        yield Finding(
            what="SECRET_OPEN",
            text=f"{some('secret', opened)} readable by others than its owner",
            advice=f"chmod 600 {' '.join(opened)}; if somebody may have read it, revoke it: sgctl token revoke",
        )
    owner = found[folder].st_uid
    if foreign := [str(path) for path in entries if found[path].st_uid != owner]:
        yield Finding(
            what="OWNER_DIFFERS",
            text=f"{some('file', foreign)} not of the directory's owner, uid {owner}: the controller can't write it",
            advice=f"chown -R --reference={folder} {folder}",
        )
    sizes = (found[path].st_size for path in (database, folder / f"{DATABASE}-wal") if path in found)
    yield from judge_room(sum(sizes), disk.f_bavail * disk.f_frsize)
