"""The agent as a process in the router: what the controller acknowledges as in force is what real packets meet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

from agent_world import ACK, SYN_ACK, reply, tcp
from enforcing import AGENT, CLIENT, WEB4, passes
from netns import World, run
from running_system import System, wait_until

from secgroups.v1 import verdict_service_pb2 as pb
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub


def test_a_revision_in_force_is_in_force_for_real_packets(system: System, world: World) -> None:
    group = system.group("web")
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    opening = tcp(CLIENT, WEB4, 80)
    answer = reply(opening, tcp_flags=SYN_ACK)
    assert not passes(world, opening)
    rule = system.rule(group, 80)
    system.wait_in_force(system.revision())
    assert passes(world, opening)
    assert passes(world, answer)
    system.wait_in_force(system.delete_rule(rule))
    assert not passes(world, tcp(CLIENT, WEB4, 80, ACK))
    assert not passes(world, answer)
    system.rule(group, 80)
    system.wait_in_force(system.revision())
    assert passes(world, tcp(CLIENT, WEB4, 80, ACK))


def test_the_agents_figures_count_what_the_kernel_has_counted(system: System, world: World) -> None:
    group = system.group("web")
    rule = system.rule(group, 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    assert passes(world, tcp(CLIENT, WEB4, 80))
    assert not passes(world, tcp(CLIENT, WEB4, 81))
    stats = system.ask(VerdictServiceStub, "GetStats", pb.GetStatsRequest(), system.stack.agents[AGENT].address)
    assert dict(stats.verdicts) == {"REASON_NO_RULE": 1}
    assert [(each.rule_id, each.packets, each.bytes) for each in stats.rules] == [(rule, 1, 40)]
    world.nft("delete", "table", "inet", "secgroups-a")
    # While it is put back, or after that: never an error, never less.
    stats = system.ask(VerdictServiceStub, "GetStats", pb.GetStatsRequest(), system.stack.agents[AGENT].address)
    assert dict(stats.verdicts) == {"REASON_NO_RULE": 1}


def test_an_agent_that_is_killed_and_started_again_leaves_no_gap(system: System, world: World) -> None:
    group = system.group("web", 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    opening, refused = tcp(CLIENT, WEB4, 80), tcp(CLIENT, WEB4, 81)
    assert passes(world, opening)
    agent = system.stack.agents[AGENT]
    for _ in range(2):
        agent.kill()
        flood = Flood(world, opening, refused)
        flood.turn(20)
        agent.ready_file.unlink()
        popen = subprocess.Popen(
            [sys.executable, "-m", *agent.arguments, "--ready-file", str(agent.ready_file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        agent.popen = popen
        while not agent.ready_file.exists():
            assert popen.poll() is None
            flood.turn(1)
        flood.turn(200)
        assert flood.lost == 0
        assert flood.slipped == 0
    rule = system.rule(group, 81)
    system.wait_in_force(system.revision())
    assert passes(world, refused)
    system.wait_in_force(system.delete_rule(rule))
    assert not passes(world, refused)


@contextmanager
def taken(table: str) -> Iterator[None]:
    """Have another process own ``table``: the kernel lets nobody else change it."""
    owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        owner.stdin.write(f"add table inet {table} {{ flags owner; }}\n")
        owner.stdin.flush()
        wait_until(lambda: table in run("nft", "list", "tables"), "the table is taken")
        yield
    finally:
        owner.stdin.close()
        owner.wait(timeout=60)


def test_what_the_kernel_refuses_is_not_acknowledged_and_comes_into_force_when_it_can(world: World, system: System) -> None:
    group = system.group("web", 80)
    system.wait_in_force(system.server("web", WEB4, AGENT, group))
    with taken("secgroups-b"):
        # It has to be built anew, and can't be.
        world.nft("add", "chain", "inet", "secgroups-a", "more")
        wait_until(lambda: bool(system.logged(AGENT, "kernel_table_not_restored")), "the damage is found")
        system.rule(group, 81)
        wait_until(lambda: bool(system.logged(AGENT, "kernel_refused")), "the kernel refuses")
        answer = system.wait_in_force(system.revision(), timeout_s=0.1)
        assert not answer.in_force
        assert [lag.agent_id for lag in answer.lagging] == [AGENT]
        assert "Operation not permitted" in system.logged(AGENT, "kernel_refused")[0]["reason"]
        assert passes(world, tcp(CLIENT, WEB4, 80))
        assert not passes(world, tcp(CLIENT, WEB4, 81))
    assert system.wait_in_force(system.revision()).in_force
    assert passes(world, tcp(CLIENT, WEB4, 81, source_port=41_000))


class Flood:
    """Packets that must pass and packets that must not, in turn."""

    def __init__(self, world: World, allowed: object, refused: object) -> None:
        self._world = world
        self._allowed, self._refused = allowed, refused
        self.lost = self.slipped = 0

    def turn(self, times: int) -> None:
        for _ in range(times):
            self.lost += not passes(self._world, self._allowed)
            self.slipped += passes(self._world, self._refused)


def test_an_agent_without_nft_does_not_start_and_says_why(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnftables.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    command = [sys.executable, "-m", "secgroups.agent", "--agent-id", AGENT, "--state-dir", str(tmp_path), "--enforce", "nftables"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"error: enforce nftables: libnftables.so.1 can't be loaded: {tmp_path}/libnftables.so.1: file too short "
        "(Debian: apt-get install nftables)",
    )


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("enforce 'iptables' is not known; known is nftables", ["--enforce", "iptables"]),
        ("interface 'web=tap0' is not SERVER=IFNAME", ["--enforce", "nftables", "--interface", "web=tap0"]),
        ("the server or the interface is named twice", ["--enforce", "nftables", "--interface", "p/a=t0", "--interface", "p/b=t0"]),
        ("kernel_mark_mask 0xff00ff must be one run", ["--enforce", "nftables", "--kernel-mark-mask", "0xff00ff"]),
        ("kernel_log_group 0 is not in 1..65535", ["--enforce", "nftables", "--kernel-log-group", "0"]),
        ("interface and clean_up are for --enforce nftables, which is not set", ["--clean-up"]),
    ],
)
def test_settings_that_can_not_work_are_refused(tmp_path: Path, said: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "secgroups.agent", "--agent-id", AGENT, "--state-dir", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
