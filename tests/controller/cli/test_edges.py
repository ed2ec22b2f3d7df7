"""Options that contradict each other, addresses that are none, and a stdout that takes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_world import PATIENCE_S, Sgctl

from secgroups.cli.client import Connection
from secgroups.cli.errors import CliError

NO_ADDRESS = "controller address '{}' is none; it is HOST:PORT, [IPV6]:PORT or unix:PATH"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:65535", "[::1]:7700", "unix:/run/secgroups.sock", "unix:a:99999"])
def test_a_host_and_a_port_or_a_socket_are_an_address(address: str) -> None:
    with Connection(address, "controller", 1.0):
        pass


# gRPC takes the port modulo 65,536, and so another server may answer.
@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:99999", "[::1]:73236", "127.0.0.1", ""])
def test_a_port_that_is_none_is_refused_and_no_other_is_called_in_its_place(address: str) -> None:
    with pytest.raises(CliError) as refused:
        Connection(address, "controller", 1.0)
    assert refused.value.message == NO_ADDRESS.format(address)


@pytest.mark.parametrize(
    ("expected", "directions"),
    [
        ("ingress", ()),
        ("ingress", ("--ingress",)),
        ("egress", ("--egress",)),
    ],
)
def test_a_rule_has_the_direction_that_was_said_or_is_ingress(sgctl: Sgctl, expected: str, directions: tuple[str, ...]) -> None:
    sgctl.do("group", "create", "web")
    sgctl.do("rule", "add", "web", *directions, "--protocol", "tcp", "--port", "80", "--remote-any")
    assert [line for line in sgctl.rules("web") if "tcp" in line] == [f"{expected} tcp 80 anywhere"]


@pytest.mark.parametrize("command", [("add", "web"), ("delete", "--group", "web")], ids=lambda command: command[0])
@pytest.mark.parametrize("directions", [("--ingress", "--egress"), ("--egress", "--ingress")], ids="".join)
def test_both_directions_at_once_are_refused(sgctl: Sgctl, command: tuple[str, ...], directions: tuple[str, ...]) -> None:
    sgctl.do("group", "create", "web")
    error = sgctl.fail("rule", *command, *directions, "--protocol", "tcp", "--port", "80", "--remote-any")
    assert error == "--ingress and --egress contradict each other: a rule has one direction"


@pytest.mark.parametrize(
    "stray", [("--ingress",), ("--egress",), ("--description", "x"), ("--port", "22"), ("--remote-any",)], ids=" ".join
)
def test_an_id_and_what_spells_a_rule_are_refused_together(sgctl: Sgctl, stray: tuple[str, ...]) -> None:
    sgctl.do("group", "create", "web")
    rule = sgctl.do("rule", "add", "web", "--preset", "ssh", "--remote-ip", "203.0.113.0/24", "-o", "name").out.strip()
    error = sgctl.fail("rule", "delete", rule, *stray)
    assert error == "name the rule by its id, or by --group and the options with which it was added"
    assert rule in sgctl.names("rule")


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("--icmp-code needs --icmp-type", ("--protocol", "icmp", "--icmp-code", "0")),
        ("--icmp-code: is '256', must be 0 to 255", ("--protocol", "icmp", "--icmp-type", "3", "--icmp-code", "256")),
        ("--icmp-type: only icmp has it, udp has not: leave it out", ("--protocol", "udp", "--icmp-type", "3")),
        ("--port: first port 9 is above last port 8", ("--protocol", "tcp", "--port", "9-8")),
        ("--protocol: is 256, must be 0 to 255", ("--protocol", "256")),
    ],
    ids=str,
)
def test_a_value_of_a_rule_that_is_none_is_told_by_the_name_of_its_option(
    sgctl: Sgctl, expected: str, words: tuple[str, ...]
) -> None:
    assert sgctl.fail("rule", "add", "web", *words, "--remote-any") == expected


def test_a_remote_address_that_is_none_is_told_by_the_name_of_its_option(sgctl: Sgctl) -> None:
    error = sgctl.fail("rule", "add", "web", "--protocol", "tcp", "--remote-ip", "office")
    assert error == "--remote-ip: 'office' is no CIDR: 'office' is no IPv4 or IPv6 address"


@pytest.mark.parametrize(
    "arguments", [("rule", "presets"), ("rule", "presets", "-o", "json"), ("--help",), ("export",)], ids=" ".join
)
def test_a_full_disk_under_stdout_is_one_line_and_an_error(sgctl: Sgctl, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = sgctl.start(*arguments, stdout=full)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (2, "error: stdout can't be written: No space left on device\n")


def test_a_closed_stdout_is_refused_before_anything_is_changed(sgctl: Sgctl) -> None:
    words = [sys.executable, "-m", "secgroups.cli", *sgctl.pointed(), "group", "create", "web"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (2, "error: stdout is closed; /dev/null takes what nobody wants to see\n")
    assert sgctl.names("group") == ["default"]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        ("{folder}: File name too long", ("--data-dir", "{folder}")),
        ("--agent a stands twice: an agent has a folder of its own", ("--agent", "a", "--agent", "b", "--agent", "a")),
        ("--agent ../a can't name a folder: no slash, and neither controller nor dots alone", ("--agent", "../a")),
        ("--agent .. can't name a folder: no slash, and neither controller nor dots alone", ("--agent", "..")),
        ("--agent controller can't name a folder: no slash, and neither controller nor dots alone", ("--agent", "controller")),
    ],
)
def test_a_development_stack_that_can_not_start_says_why_in_one_line(
    sgctl: Sgctl, tmp_path: Path, error: str, arguments: tuple[str, ...]
) -> None:
    folder = str(tmp_path / ("x" * 256))
    process = sgctl.start("dev", "--listen", "127.0.0.1:0", *(each.format(folder=folder) for each in arguments))
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err.splitlines()[-1]) == (2, f"error: {error.format(folder=folder)}")
    assert "Traceback" not in err


def test_a_rule_that_is_there_already_is_named_as_people_say_it(sgctl: Sgctl) -> None:
    sgctl.do("group", "create", "web")
    first = sgctl.do("rule", "add", "web", "--preset", "ssh", "--remote-ip", "203.0.113.0/24", "-o", "name").out.strip()
    error = sgctl.fail("rule", "add", "web", "--preset", "ssh", "--remote-ip", "203.0.113.9/24")
    assert error.startswith(f"group web has this rule already: {first} (ingress TCP 22 from 203.0.113.0/24) ")
    again = sgctl.do("rule", "add", "web", "--protocol", "any", "--remote-group", "web", "-o", "name").out.strip()
    error = sgctl.fail("rule", "add", "web", "--protocol", "any", "--remote-group", "web")
    assert error.startswith(f"group web has this rule already: {again} (ingress any from group web) ")
