"""What the service manager that started this process is told: systemd with ``Type=notify``, by sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell it, if there is one that wants to know. Raises nothing, and does not wait."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An abstract socket of Linux is written with an at sign in place of its zero.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode(), target)
    except OSError as error:
        log.warning("service_manager_not_told", state=state, socket=address, reason=error.strerror)
