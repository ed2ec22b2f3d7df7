"""An agent with a flow table in a file goes on with its connections after an end of any kind."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import grpc
import pytest
from running_system import System, wait_until

from secgroups.agent.flow import TCP, Direction, Packet, Reason, TcpFlags
from secgroups.agent.records import VERDICT_BYTES, pack_many
from secgroups.v1 import verdict_service_pb2 as verdicts_pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

WEB = "10.0.0.9"
CONNECTIONS = [50_000 + number for number in range(20)]


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    """A controller and an agent that keeps its flows in a file."""
    site = system("a1")
    agent = site.stack.agents["a1"]
    agent.stop()
    agent.arguments += ["--flow-table", str(table_of(site)), "--flows-max", "65536"]
    agent.start()
    return site


@pytest.fixture
def site(shared: System) -> System:
    """Server w1 of the agent allows TCP 80 from anywhere, and that is in force and in the cache."""
    shared.renew_project()
    shared.server("w1", WEB, "a1", shared.group("web", 80))
    assert shared.wait_in_force().in_force
    wait_until(lambda: f"{shared.project}/w1" in cache_of(shared), "the cache is written")
    return shared


def table_of(site: System) -> Path:
    return site.folder / "flows"


def cache_of(site: System) -> str:
    file = site.folder / "a1" / "ruleset.cache"
    return file.read_text(errors="replace") if file.exists() else ""


def rule_of_its_own(site: System, port: int) -> str:
    """Have server w1 allow a port by a rule of another group; return the rule once that is in force and in the cache."""
    group_id = site.group(f"port-{port}")
    rule_id = site.rule(group_id, port)
    site.attach("w1", group_id)
    assert site.wait_in_force().in_force
    wait_until(lambda: rule_id in cache_of(site), "the cache is written")
    return rule_id


def connect(site: System, port: int, source_port: int) -> None:
    said = [site.decide("a1", "w1", WEB, port, source_port, flags) for flags in ("SYN", "SYN,ACK", "ACK")]
    assert said == ["NEW", "ESTABLISHED", "ESTABLISHED"]


def verdicts(site: System) -> list[str]:
    """Return what connections that may be there get, and packets of none."""
    asked = [(80, port, flags) for port in CONNECTIONS for flags in ("ACK", "SYN,ACK")]
    asked += [(80, 49_000, "ACK"), (443, 49_000, "SYN"), (80, 49_000, "SYN,ACK")]
    return [site.decide("a1", "w1", WEB, *each) for each in asked]


def opened(site: System) -> dict[str, Any]:
    return site.logged("a1", "flow_table_opened")[-1]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_connections_go_on_after_a_restart(site: System, end: str) -> None:
    for port in CONNECTIONS:
        connect(site, 80, port)
    before = verdicts(site)
    assert before[0] == before[1] == "ESTABLISHED"
    getattr(site.stack.agents["a1"], end)()
    site.stack.agents["a1"].start()
    assert verdicts(site) == before
    said = opened(site)
    assert said["entries"] >= len(CONNECTIONS)
    assert (said["dropped"], said["judged_by_cached_state"], said["file"]) == (0, True, str(table_of(site)))
    assert site.logged("a1", "flow_table_refused") == []


def test_they_go_on_without_a_controller(site: System) -> None:
    connect(site, 80, CONNECTIONS[0])
    site.stack.controller.kill()
    site.stack.agents["a1"].kill()
    site.stack.agents["a1"].start()
    try:
        assert site.decide("a1", "w1", WEB, 80, CONNECTIONS[0], "ACK") == "ESTABLISHED"
    finally:
        site.stack.controller.start()
    wait_until(lambda: site.agent("a1").connected, "the agent is back")


def test_a_rule_that_was_deleted_while_the_agent_was_down_cuts_its_connections_and_no_others(site: System) -> None:
    rule_id = rule_of_its_own(site, 22)
    connect(site, 22, 50_000)
    connect(site, 80, 50_001)
    site.stack.agents["a1"].kill()
    revision = site.delete_rule(rule_id)
    site.stack.agents["a1"].start()
    wait_until(lambda: site.agent("a1").applied_revision >= revision, "the change is in force")
    assert site.decide("a1", "w1", WEB, 22, 50_000, "ACK") == "REVOKED"
    assert site.decide("a1", "w1", WEB, 22, 50_000, "SYN,ACK") == "REVOKED"
    assert site.decide("a1", "w1", WEB, 80, 50_001, "ACK") == "ESTABLISHED"
    site.stack.agents["a1"].kill()
    site.stack.agents["a1"].start()
    assert site.decide("a1", "w1", WEB, 22, 50_000, "ACK") == "REVOKED"


class Load(threading.Thread):
    """Opens connections on one stream, in lockstep, and speaks in them until the stream breaks.

    ``opened`` are the clients of those whose handshake was answered in full, so that a kill must not lose them.
    """

    CONNECTIONS_MAX = 3000
    AT_ONCE = 50

    def __init__(self, site: System, first_client: str) -> None:
        super().__init__()
        self.opened: list[IPv4Address] = []
        self._address = site.stack.agents["a1"].address
        self._server = f"{site.project}/w1"
        self._first = IPv4Address(first_client)

    def run(self) -> None:
        asked: queue.SimpleQueue[verdicts_pb.DecideStreamRequest | None] = queue.SimpleQueue()
        with suppress(grpc.RpcError), grpc.insecure_channel(self._address) as channel:
            answers = VerdictServiceStub(channel).DecideStream(iter(asked.get, None))
            asked.put(verdicts_pb.DecideStreamRequest(servers=[self._server]))
            handle = next(answers).server_handles[0]
            while True:
                is_full = len(self.opened) >= self.CONNECTIONS_MAX
                clients = [self._first + len(self.opened) + number for number in range(self.AT_ONCE)]
                packets = handshakes(self._server, handle, self.opened[: self.AT_ONCE] if is_full else clients)
                asked.put(verdicts_pb.DecideStreamRequest(records=packets))
                packed = next(answers).verdicts
                if not is_full and {packed[at + 1] for at in range(0, len(packed), VERDICT_BYTES)} == {
                    Reason.NEW,
                    Reason.ESTABLISHED,
                }:
                    self.opened += clients
        asked.put(None)


def handshakes(server: str, handle: int, clients: list[IPv4Address]) -> bytes:
    """Return the packets of a handshake of each client, one client after the other."""
    packets = []
    for client in clients:
        ack = packet_of(server, client)
        answer = replace(
            ack,
            direction=Direction.EGRESS,
            source=ack.destination,
            destination=ack.source,
            source_port=80,
            destination_port=40_000,
            tcp_flags=TcpFlags.SYN | TcpFlags.ACK,
        )
        packets += [replace(ack, tcp_flags=TcpFlags.SYN), answer, ack]
    return pack_many(packets, lambda _: handle)[0]


def packet_of(server: str, client: IPv4Address) -> Packet:
    return Packet(
        server=server,
        direction=Direction.INGRESS,
        source=client,
        destination=IPv4Address(WEB),
        protocol=TCP,
        source_port=40_000,
        destination_port=80,
        tcp_flags=TcpFlags.ACK,
        length=60,
    )


def reasons_of(site: System, clients: list[IPv4Address]) -> set[str]:
    """Return what packets of connections that are there get."""
    server = f"{site.project}/w1"
    with grpc.insecure_channel(site.stack.agents["a1"].address) as channel:
        stub = VerdictServiceStub(channel)
        (named,) = stub.DecideStream(iter([verdicts_pb.DecideStreamRequest(servers=[server])]))
        records = pack_many([packet_of(server, client) for client in clients], lambda _: named.server_handles[0])[0]
        (answer,) = stub.DecideStream(iter([verdicts_pb.DecideStreamRequest(records=records)]))
    return {Reason(answer.verdicts[at + 1]).name for at in range(0, len(answer.verdicts), VERDICT_BYTES)}


def toggle(site: System, ended: threading.Event) -> None:
    """Change the rules of the server again and again."""
    group_id = site.group("toggled")
    site.attach("w1", group_id)
    while not ended.is_set():
        site.delete_rule(site.rule(group_id, 22))


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_in_the_middle_of_verdicts_and_changes_loses_no_connection(site: System, seed: int) -> None:
    chance = random.Random(seed)
    agent, load, ended = site.stack.agents["a1"], Load(site, f"198.18.{seed * 16}.1"), threading.Event()
    changes = threading.Thread(target=toggle, args=(site, ended))
    load.start()
    changes.start()
    try:
        wait_until(lambda: bool(load.opened), "the first connections are there")
        time.sleep(chance.uniform(0, 0.6))
        agent.kill()
    finally:
        ended.set()
        load.join()
        changes.join()
    agent.start()
    assert reasons_of(site, load.opened) == {"ESTABLISHED"}
    assert reasons_of(site, [IPv4Address("198.51.100.99")]) == {"INVALID_STATE"}
    assert opened(site)["dropped"] == 0
    assert site.wait_in_force().in_force
    assert reasons_of(site, load.opened) == {"ESTABLISHED"}
    assert site.logged("a1", "flow_table_refused") == []


def zeroed(file: Path, at: int, length: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(bytes(length))


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("checksum of its header", lambda file: zeroed(file, 72, 64)),
        ("is no flow table", lambda file: file.write_bytes(b"something else")),
        ("has no names", lambda file: file.with_name("flows.names").unlink()),
        ("is torn", lambda file: file.write_bytes(file.read_bytes()[:-4096])),
    ],
    ids=["seed", "another file", "names", "torn"],
)
def test_a_file_that_can_not_be_used_is_said_so_and_the_agent_works(
    site: System, words: str, spoil: Callable[[Path], object]
) -> None:
    agent = site.stack.agents["a1"]
    connect(site, 80, 50_000)
    agent.stop()
    before = len(site.logged("a1", "flow_table_refused"))
    spoil(table_of(site))
    agent.start()
    said = site.logged("a1", "flow_table_refused")
    assert len(said) == before + 1
    assert words in said[-1]["reason"]
    assert said[-1]["file"] == str(table_of(site))
    assert opened(site)["entries"] == 0
    assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == "INVALID_STATE"
    connect(site, 80, 50_001)
    agent.kill()
    agent.start()
    assert len(site.logged("a1", "flow_table_refused")) == before + 1
    assert site.decide("a1", "w1", WEB, 80, 50_001, "ACK") == "ESTABLISHED"


def test_names_for_which_there_is_no_room_are_said_once_and_cost_the_flows_at_the_next_start_only(
    site: System, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = site.stack.agents["a1"]
    kept = agent.arguments
    at = kept.index("--flow-table")
    agent.stop()
    monkeypatch.setattr(agent, "arguments", [*kept[:at], "--flow-table", str(small_disk / "flows"), "--flows-max", "64"])
    agent.start()
    try:
        connect(site, 80, 50_000)
        (small_disk / "filling").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        for number in range(2):
            site.attach("w1", site.group(f"long-{number}", *range(1000, 1100)))
            assert site.wait_in_force().in_force
        (said,) = site.logged("a1", "flow_table_given_up")
        assert said["reason"] == f"{small_disk}/flows.names can't be written: No space left on device"
        assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == "ESTABLISHED"
        (small_disk / "filling").unlink()
        agent.kill()
        agent.start()
        assert "was given up" in site.logged("a1", "flow_table_refused")[-1]["reason"]
        assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == "INVALID_STATE"
    finally:
        agent.stop()
        agent.arguments = kept
        agent.start()


@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("INVALID_STATE", []),
        ("NEW", ["--tcp-loose-s", "300"]),
        ("NEW", ["--tcp-loose-s", "300", "--flow-table", "{folder}/fresh"]),
        ("ESTABLISHED", ["--flow-table", "{folder}/fresh"]),
    ],
    ids=["memory alone", "loose", "loose and a new file", "the file that is now there"],
)
def test_without_a_table_connections_end_unless_the_start_is_loose(
    site: System, expected: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(site, 80, 50_000)
    agent = site.stack.agents["a1"]
    kept = agent.arguments
    agent.stop()
    at = kept.index("--flow-table")
    monkeypatch.setattr(agent, "arguments", [*kept[:at], *(each.format(folder=site.folder) for each in flags)])
    agent.start()
    try:
        if expected == "ESTABLISHED":
            connect(site, 80, 50_000)
            agent.kill()
            agent.start()
        assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == expected
    finally:
        agent.stop()
        agent.arguments = kept
        agent.start()
