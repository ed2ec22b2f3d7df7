"""``sgctl test --live`` against a controller that runs as a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secgroups.agent.firewall import ENGINES
from secgroups.cli.client import Client
from secgroups.cli.errors import CallError
from secgroups.cli.main import run
from secgroups.cli.settings import Settings
from secgroups.lab.cases.live import LiveWorld
from secgroups.lab.cases.loader import load_file
from secgroups.lab.cases.places import PROJECT, take_place
from secgroups.lab.cases.runner import run_case
from secgroups.lab.stack import Stack
from secgroups.v1.audit_service_pb2 import ListChangesRequest
from secgroups.v1.group_service_pb2 import CreateGroupRequest, DeleteGroupRequest, GetGroupRequest, ListGroupsRequest
from secgroups.v1.rule_service_pb2 import ListRulesRequest
from secgroups.v1.server_service_pb2 import ListServersRequest

VECTORS = Path(__file__).parents[2] / "vectors"

SETUP = """\
- name: one
  groups: {web: {rules: [{direction: ingress, protocol: tcp, ports: 80, as: http}]}, q/web: {}}
  servers: {w1: {addresses: [10.0.0.1], groups: [web]}, q/w1: {addresses: [10.0.0.1], groups: [q/web]}, n1: {addresses: [10.0.0.5]}}
  steps:
"""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Stack(tmp_path_factory.mktemp("live"), []) as stack:
        yield stack.controller.address


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_vector_that_can_be_run_live_holds(controller: str, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    files = map(str, sorted(VECTORS.glob("*.yaml")))
    status = run(["--controller", controller, "test", "--live", "--engine", engine, "--json", *files])
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [outcome for outcome in outcomes if outcome["ok"] is False] == []
    assert status == 0
    skipped = [outcome for outcome in outcomes if outcome["ok"] is None]
    assert {Path(outcome["file"]).name for outcome in skipped} == {"controller_outage.yaml"}
    assert all(outcome["skipped"].startswith("stop_controller (line ") for outcome in skipped)
    assert len(outcomes) - len(skipped) > 150


@pytest.mark.parametrize(
    ("expected", "got", "step"),
    [
        ("deny", "allow NEW", "{flow: {from: 203.0.113.9, to: w1, protocol: tcp, port: 80}, expect: deny}"),
        ("NOT_FOUND", "success", "{delete_rule: {rule: http}, error: NOT_FOUND}"),
        ("success", "ALREADY_EXISTS", "{add_group: {name: web}}"),
        ("that names n1", "ALREADY_EXISTS", "{add_group: {name: web}, error: ALREADY_EXISTS, error_names: n1}"),
    ],
)
def test_a_wrong_expectation_fails_live_too(
    controller: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], expected: str, got: str, step: str
) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(f"{SETUP}    - {step}\n")
    assert run(["--controller", controller, "test", "--live", "--json", str(file)]) == 1
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["ok"], outcome["failed_step"]) == (False, 1)
    assert expected in outcome["expected"]
    assert got in outcome["got"]


def test_a_case_leaves_nothing_but_an_empty_default_group(controller: str, tmp_path: Path) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(f"{SETUP}    - {{add_group: {{name: web}}}}\n")
    (case,) = load_file(str(file))
    with Settings(controller=controller, plaintext=True).connect() as client:
        with take_place(client) as place:
            world = LiveWorld(client, "reference", place, case)
            assert not run_case(case, lambda _: world).ok
        projects = world.projects
        assert len(projects) == 2
        for project in projects:
            groups = client.call(client.groups.ListGroups, ListGroupsRequest(project=project)).groups
            assert [(group.name, group.rule_count, group.server_count) for group in groups] == [("default", 0, 0)]
            assert not client.call(client.servers.ListServers, ListServersRequest(project=project)).servers
            assert not client.call(client.rules.ListRules, ListRulesRequest(project=project)).rules


def test_a_run_after_another_leaves_no_more_than_that_one(controller: str, tmp_path: Path) -> None:
    file = tmp_path / "case.yaml"
    step = "    - {add_group: {name: other}}\n"
    file.write_text(SETUP + step + SETUP.replace("name: one", "name: two") + step)
    command = ["--controller", controller, "test", "--live", str(file)]
    assert run(command) == 0
    with Settings(controller=controller, plaintext=True).connect() as client:
        first = default_groups_made(client)
        assert run(command) == 0
        assert default_groups_made(client) == first
        groups = client.call(client.groups.ListGroups, ListGroupsRequest(project=PROJECT)).groups
        assert [group.name for group in groups] == ["default"]


def default_groups_made(client: Client) -> int:
    """Return how many projects there are, by the log of changes."""
    pages = client.pages(client.audit.ListChanges, ListChangesRequest())
    groups = [change.after.group for page in pages for change in page.changes if change.after.HasField("group")]
    return len({group.id for group in groups if group.name == "default"})


def test_runs_at_the_same_time_have_places_of_their_own(controller: str) -> None:
    with Settings(controller=controller, plaintext=True).connect() as client:
        with take_place(client) as one, take_place(client) as two:
            assert (one.number, two.number) == (1, 2)
        with take_place(client) as again:
            assert again.number == 1


def test_a_place_where_something_may_have_been_left_stays_taken(controller: str) -> None:
    with Settings(controller=controller, plaintext=True).connect() as client:
        with pytest.raises(CallError), take_place(client):
            client.call(client.groups.GetGroup, GetGroupRequest(project=PROJECT, id="nobody"))
        with take_place(client) as after:
            assert after.number == 2
        taken = client.call(client.groups.ListGroups, ListGroupsRequest(project=PROJECT, name="place-1")).groups[0]
        assert "sgctl test --live of " in taken.description
        client.call(client.groups.DeleteGroup, DeleteGroupRequest(project=PROJECT, id=taken.id))


def test_nothing_is_deleted_from_a_project_that_is_not_empty(
    controller: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "case.yaml"
    file.write_text(f"{SETUP}    - {{add_group: {{name: other}}}}\n")
    with Settings(controller=controller, plaintext=True).connect() as client:
        name = f"{PROJECT}-1-q"
        made = client.call(client.groups.CreateGroup, CreateGroupRequest(project=name, name="somebody's")).group
        assert run(["--controller", controller, "test", "--live", str(file)]) == 1
        assert f"project {name} is for cases and not empty" in capsys.readouterr().out
        held = client.call(client.groups.ListGroups, ListGroupsRequest(project=name)).groups
        assert [group.name for group in held] == ["default", "somebody's"]
        client.call(client.groups.DeleteGroup, DeleteGroupRequest(project=name, id=made.id))
        assert run(["--controller", controller, "test", "--live", str(file)]) == 0


def test_skipped_cases_are_said_and_counted(controller: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = VECTORS / "controller_outage.yaml"
    assert run(["--controller", controller, "test", "--live", str(file)]) == 0
    *skipped, counted = capsys.readouterr().out.splitlines()
    assert skipped
    assert all(line.startswith(f"SKIP {file}:") for line in skipped)
    assert counted.startswith(f"{len(skipped)} cases: 0 passed, 0 failed, {len(skipped)} skipped in ")
    assert f"live at {controller}" in counted


def test_a_controller_that_nobody_answers_for_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--controller", f"unix:{tmp_path}/nobody", "test", "--live", str(VECTORS / "projects.yaml")]) == 2
    assert "can't be reached" in capsys.readouterr().err
