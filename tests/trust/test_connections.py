"""Connections cost something before anybody has said who it is: there are so many and no more, and they do not last for nothing."""

from __future__ import annotations

import resource
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import grpc
import pytest
from trusted_site import TIMEOUT_S, Site, bearer

from secgroups.controller.connections import FILES_KEPT, allow_connections
from secgroups.v1 import trust_service_pb2 as pb
from secgroups.v1.trust_service_pb2_grpc import TrustServiceStub

CONNECTIONS = 12
IDLE_S = 1.5


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SECGROUPS_CONTROLLER_CONNECTIONS_MAX", str(CONNECTIONS))
        environment.setenv("SECGROUPS_CONTROLLER_IDLE_CONNECTION_S", str(IDLE_S))
        made = Site(tmp_path_factory.mktemp("crowded"))
    yield made
    made.stop()


def connected(stack: ExitStack, address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return stack.enter_context(closing(socket.create_connection((host, int(port)), TIMEOUT_S)))


def tls(stack: ExitStack, site: Site) -> ssl.SSLSocket:
    """Shake hands, as clients of HTTP/2 do, and say nothing more than that one is there."""
    context = ssl.create_default_context(cadata=site.ca.decode())
    context.set_alpn_protocols(["h2"])
    made = stack.enter_context(context.wrap_socket(connected(stack, site.controller.address), server_hostname="127.0.0.1"))
    made.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    return made


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it. Reads what it has said."""
    try:
        while True:
            if not connection.recv(65_536):
                return True
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def until_closed(connections: list[socket.socket], count: int) -> list[socket.socket]:
    """Wait until so many are closed; return those that are open."""
    for each in connections:
        each.setblocking(False)
    open_ = [each for each in connections if not is_closed(each)]
    ends_s = time.monotonic() + TIMEOUT_S
    while len(connections) - len(open_) < count and time.monotonic() < ends_s:
        select.select(open_, [], [], 1)
        open_ = [each for each in open_ if not is_closed(each)]
    assert len(connections) - len(open_) >= count
    return open_


def who(site: Site, address: str = "") -> str:
    _, token = site.token(pb.ROLE_VIEWER, "p")
    with site.tls(address) as channel:
        return TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), metadata=bearer(token), timeout=TIMEOUT_S).token.project


def test_so_many_connections_and_no_more_and_where_agents_come_in_is_room_all_the_same(crowded: Site) -> None:
    with ExitStack() as stack, crowded.enroll("beside") as channel:
        # They say nothing: nobody knows who they are.
        silent = [connected(stack, crowded.controller.address) for _ in range(3 * CONNECTIONS)]
        open_ = until_closed(silent, 2 * CONNECTIONS)
        assert len(open_) <= CONNECTIONS
        assert TrustServiceStub(channel).WhoAmI(pb.WhoAmIRequest(), timeout=TIMEOUT_S).agent_id == "beside"
        # Who does not end its handshake in time is closed, and there is room again.
        assert not until_closed(open_, len(open_))
        assert who(crowded) == "p"


def test_who_shakes_hands_and_calls_nothing_is_closed_and_who_is_in_a_call_is_not(crowded: Site) -> None:
    from secgroups.v1 import audit_service_pb2 as audit
    from secgroups.v1.audit_service_pb2_grpc import AuditServiceStub

    _, token = crowded.token(pb.ROLE_VIEWER, "p")
    with ExitStack() as stack, crowded.tls() as channel:
        watching = AuditServiceStub(channel).WatchChanges(
            audit.WatchChangesRequest(project="p"), metadata=bearer(token), timeout=TIMEOUT_S
        )
        assert not until_closed([tls(stack, crowded) for _ in range(3)], 3)
        assert watching.is_active()
        watching.cancel()


def test_a_client_that_was_idle_for_too_long_goes_on_with_its_next_call(crowded: Site) -> None:
    _, token = crowded.token(pb.ROLE_VIEWER, "p")
    seen: list[grpc.ChannelConnectivity] = []
    with crowded.tls() as channel:
        call = TrustServiceStub(channel).WhoAmI
        channel.subscribe(seen.append)
        assert call(pb.WhoAmIRequest(), metadata=bearer(token), timeout=TIMEOUT_S).token.project == "p"
        ends_s = time.monotonic() + TIMEOUT_S
        while grpc.ChannelConnectivity.IDLE not in seen[1:] and time.monotonic() < ends_s:
            select.select([], [], [], 0.05)
        assert seen[-1] is grpc.ChannelConnectivity.IDLE
        assert call(pb.WhoAmIRequest(), metadata=bearer(token), timeout=TIMEOUT_S).token.project == "p"


def test_there_are_no_more_connections_than_there_are_files_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= FILES_KEPT + 2 * 50
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_KEPT + 20, hard))
        # As far as that is allowed, it is raised.
        assert allow_connections(50) == 50
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == FILES_KEPT + 100
        assert allow_connections(10**9) == (hard - FILES_KEPT) // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
