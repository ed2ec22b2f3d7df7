"""From what people call a thing to the thing: names, ids, and beginnings of rule ids."""

from __future__ import annotations

import re

from secgroups.cli import pb
from secgroups.cli.client import Client
from secgroups.cli.errors import AmbiguousError, CallError, CliError, NotFoundError

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# So many candidates an error lists.
CANDIDATES_MAX = 20


def get_group(client: Client, wanted: str) -> pb.Group:
    """Return the group of that id, else of that name; any spelling of default finds the default group. NotFoundError if none."""
    if not wanted:
        raise CliError("the name of a group is empty")
    if _UUID.fullmatch(wanted.lower()):
        try:
            return client.call(client.groups.GetGroup, pb.GetGroupRequest(project=client.project, id=wanted.lower())).group
        except CallError as error:
            if error.code != "NOT_FOUND":
                raise
    page = client.call(client.groups.ListGroups, pb.ListGroupsRequest(project=client.project, name=wanted))
    if not page.groups:
        raise NotFoundError(f"there is no group {wanted!r} in project {client.project}")
    return page.groups[0]


def get_server(client: Client, wanted: str) -> pb.Server:
    """Return the server of that id, else the one of that name. NotFoundError if none, AmbiguousError if several have the name."""
    if not wanted:
        raise CliError("the name of a server is empty")
    try:
        return client.call(client.servers.GetServer, pb.GetServerRequest(project=client.project, id=wanted)).server
    except CallError as error:
        # What can't be an id may still be a name.
        if error.code not in ("NOT_FOUND", "INVALID_ARGUMENT"):
            raise
    found = list(list_servers(client, pb.ListServersRequest(project=client.project, name=wanted)))
    if not found:
        raise NotFoundError(f"there is no server {wanted!r} in project {client.project}")
    if len(found) > 1:
        raise AmbiguousError(f"{len(found)} servers are called {wanted!r}; name one by its id", _some([s.id for s in found]))
    return found[0]


def get_rule(client: Client, wanted: str) -> pb.Rule:
    """Return the rule of that id, or the only one whose id begins like that. NotFoundError or AmbiguousError otherwise."""
    if not wanted:
        raise CliError("the id of a rule is empty")
    wanted = wanted.lower()
    if _UUID.fullmatch(wanted):
        return client.call(client.rules.GetRule, pb.GetRuleRequest(project=client.project, id=wanted)).rule
    found = [rule for rule in list_rules(client) if rule.id.startswith(wanted)]
    if not found:
        raise NotFoundError(f"there is no rule {wanted!r} in project {client.project}")
    if len(found) > 1:
        raise AmbiguousError(f"{len(found)} rules have ids that begin with {wanted!r}", _some([rule.id for rule in found]))
    return found[0]


def list_groups(client: Client) -> list[pb.Group]:
    """Return all groups of the project."""
    pages = client.pages(client.groups.ListGroups, pb.ListGroupsRequest(project=client.project))
    return [group for page in pages for group in page.groups]


def list_rules(client: Client, *, group_id: str = "", remote_group_id: str = "") -> list[pb.Rule]:
    """Return the rules of the project, or of one group, or those that name a group."""
    request = pb.ListRulesRequest(project=client.project, group_id=group_id, remote_group_id=remote_group_id)
    return [rule for page in client.pages(client.rules.ListRules, request) for rule in page.rules]


def list_servers(client: Client, request: pb.ListServersRequest | None = None) -> list[pb.Server]:
    """Return the servers of the project, or those that ``request`` asks for."""
    request = request or pb.ListServersRequest(project=client.project)
    return [server for page in client.pages(client.servers.ListServers, request) for server in page.servers]


def group_names(client: Client) -> dict[str, str]:
    """Return the names of all groups by id."""
    return {group.id: group.name for group in list_groups(client)}


def _some(candidates: list[str]) -> list[str]:
    more = len(candidates) - CANDIDATES_MAX
    return candidates[:CANDIDATES_MAX] + ([f"... and {more} more"] if more > 0 else [])
