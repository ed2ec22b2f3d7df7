"""How many connections there may be, and for how long one may do nothing: by what gRPC keeps to, and what the system allows.

A connection costs memory and a file before anybody has said who it is. gRPC counts them for each listening address, not by who they
come from: where one host must not take the places of all others, bound it in front of the controller.
"""

from __future__ import annotations

import resource

# From a connection to the end of its handshakes, TLS and HTTP/2.
HANDSHAKE_TIMEOUT_MS = 10_000
# Files for everything but connections: the database, logs, channelz and health, what is asked of the disk.
FILES_KEPT = 256
# The addresses that many may connect to: the API, and where agents subscribe.
ADDRESSES = 2


def connection_options(connections_max: int, idle_s: float) -> list[tuple[str, int]]:
    """Return what a server is told: at most so many connections to each address, and which are closed by themselves.

    Those are who does not end its handshake in time, and who has made no call for ``idle_s``. Clients of gRPC connect again for the
    next call.
    """
    return [
        ("grpc.max_allowed_incoming_connections", connections_max),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", round(idle_s * 1000)),
    ]


def allow_connections(connections_max: int) -> int:
    """Let this process have files for ``connections_max`` to each address; return for how many the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ADDRESSES * connections_max + FILES_KEPT
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections_max
    return max(1, (soft - FILES_KEPT) // ADDRESSES)
