"""``sgctl limits``."""

from __future__ import annotations

from cli_world import Sgctl


def rows(sgctl: Sgctl) -> dict[str, list[str]]:
    columns = "limit,most,used,default,override"
    lines = sgctl.do("limits", "show", "-o", "csv", "--columns", columns).lines
    return {line.split(",")[0]: line.split(",")[1:] for line in lines[1:]}


def test_limits_are_shown_set_reset_and_listed(sgctl: Sgctl) -> None:
    sgctl.do("group", "create", "web")
    assert rows(sgctl)["groups_per_project"] == ["500", "2", "500", ""]
    sgctl.do("limits", "set", "--groups-per-project", "2", "--rules-per-group", "9")
    assert rows(sgctl)["groups_per_project"] == ["2", "2", "500", "2"]
    assert "let an admin raise groups_per_project" in sgctl.fail("group", "create", "db")
    sgctl.do("limits", "set", "--groups-per-project", "7", "--dry-run")
    assert rows(sgctl)["groups_per_project"][0] == "2"
    assert f"{sgctl.project}" in sgctl.do("limits", "list", "-o", "name").lines
    said = sgctl.do("audit", "-n", "1").out
    assert f"limits of project {sgctl.project}" in said
    assert "groups_per_project: 2" in said
    sgctl.do("limits", "reset", "groups_per_project")
    assert (rows(sgctl)["groups_per_project"][0], rows(sgctl)["rules_per_group"][0]) == ("500", "9")
    sgctl.do("limits", "reset")
    assert sgctl.project not in sgctl.do("limits", "list", "-o", "name").lines
    sgctl.do("group", "create", "db")


def test_what_is_no_limit_is_said_before_anything_is_asked(sgctl: Sgctl) -> None:
    assert "give at least one limit" in sgctl.fail("limits", "set").splitlines()[-1]
    assert "0 is not in the range 1<=x<=1000000" in sgctl.fail("limits", "set", "--rules-per-group", "0").splitlines()[-1]
