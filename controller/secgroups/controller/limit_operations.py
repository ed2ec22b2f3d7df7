"""Limits of a project: what may be changed of them, and how far they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from secgroups.controller.errors import LimitError, StaleEtagError
from secgroups.controller.limits import OVERRIDDEN_PROJECTS_MAX, LimitOverrides
from secgroups.controller.model import check_name, etag_of

if TYPE_CHECKING:
    from secgroups.controller.state import State
    from secgroups.controller.store.interface import Transaction


def update_limits(tx: Transaction, *, project: str, changes: Mapping[str, int | None], etag: str = "") -> LimitOverrides | None:
    """Set limits of a project by name, None for the default; return what is overridden then, None if nothing is.

    What is there already may be more than is allowed from then on. StaleEtagError, LimitError for too many projects.
    """
    check_name(project, "project")
    before = tx.find_limit_overrides(project)
    present = etag_of(before.revision if before else 0)
    if etag and etag != present:
        raise StaleEtagError("limits", project, given=etag, present=present)
    after = replace(before or LimitOverrides(project=project, updated_us=0, revision=0), **changes)  # type: ignore[arg-type]
    if dict(after.values) == dict(before.values if before else {}):
        return before
    if not after.values:
        if before is not None:
            tx.delete_limit_overrides(before)
        return None
    if before is None and tx.count_limit_overrides() >= OVERRIDDEN_PROJECTS_MAX:
        most = OVERRIDDEN_PROJECTS_MAX
        message = f"{most} projects have limits of their own, the most allowed; give some of them the defaults back"
        raise LimitError("limits", message, limit="overridden_projects_max", most=most)
    after = replace(after, updated_us=tx.now_us, revision=tx.revision)
    tx.put_limit_overrides(before, after)
    return after


@dataclass(frozen=True, slots=True)
class Use:
    """How many there are; ``by`` is the id of the group or server that has the most, empty for what a project has."""

    count: int
    by: str = ""


def use_of(state: State, project: str) -> dict[str, Use]:
    """Return how far each limit of a project is used, by its name; see ``State.tallies`` for what that takes."""
    tallies = state.tallies(project)
    return {
        "groups_per_project": Use(state.group_total(project)),
        "rules_per_group": Use(*tallies.rules_by_group.most()),
        "groups_per_server": Use(*tallies.groups_by_server.most()),
        "servers_per_project": Use(state.server_total(project)),
        "addresses_per_server": Use(*tallies.addresses_by_server.most()),
    }
