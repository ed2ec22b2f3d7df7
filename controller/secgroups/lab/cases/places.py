"""Where on a running controller the cases of ``--live`` take place: projects that one run at a time has to itself.

A default group stays where a project has been used, so that projects of new names would fill the controller with them. A run takes
the lowest place that is free and gives it back: places are groups of a project of their own, and the controller makes one of a name
only once. Whoever is killed leaves its group there, whose description says who that was.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from secgroups.cli import pb
from secgroups.cli.client import Client
from secgroups.cli.errors import CallError, InputError
from secgroups.lab.cases.world import RefusedError

PROJECT = "sgctl-test"
PLACES_MAX = 100

_PROJECT_CHARACTERS_MAX = 100


class Place:
    """Projects of one run. Raises CallError."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self.number = number

    def open_project(self, project: str) -> str:
        """Return the project that stands for ``project`` of a case, as if nobody had used it. RefusedError if it is not empty."""
        name = f"{PROJECT}-{self.number}-{project[:_PROJECT_CHARACTERS_MAX]}"
        # To list the groups of a project makes its default group.
        groups = list(self._client.call(self._client.groups.ListGroups, pb.ListGroupsRequest(project=name)).groups)
        servers = self._client.call(self._client.servers.ListServers, pb.ListServersRequest(project=name)).servers
        if servers or len(groups) > 1:
            message = f"project {name} is for cases and not empty: delete its servers and groups"
            raise RefusedError("FAILED_PRECONDITION", message)
        request = pb.ReplaceRulesRequest(project=name, group_id=groups[0].id, rules=_born_rules(groups[0].id))
        self._client.call(self._client.rules.ReplaceRules, request)
        return name


@contextmanager
def take_place(client: Client) -> Iterator[Place]:
    """Have a place until the end of the block. InputError if there is none, CallError.

    It stays taken if the block ends with a CallError or RefusedError: what was made there may be there still.
    """
    taken = _claim(client)
    released = True
    try:
        yield Place(client, taken[0])
    except (CallError, RefusedError):
        released = False
        raise
    finally:
        if released:
            client.call_once(client.groups.DeleteGroup, pb.DeleteGroupRequest(project=PROJECT, id=taken[1]))


def _claim(client: Client) -> tuple[int, str]:
    """Return the number of a place that was free, and the id of the group by which it is taken."""
    pages = client.pages(client.groups.ListGroups, pb.ListGroupsRequest(project=PROJECT))
    names = {group.name for page in pages for group in page.groups}
    about = f"sgctl test --live of {_user()}, process {os.getpid()} on {socket.gethostname()}"
    for number in range(1, PLACES_MAX + 1):
        if f"place-{number}" in names:
            continue
        request = pb.CreateGroupRequest(project=PROJECT, name=f"place-{number}", description=about)
        try:
            return number, client.call_once(client.groups.CreateGroup, request).group.id
        except CallError as error:
            # Somebody was quicker.
            if error.code != "ALREADY_EXISTS":
                raise
    raise InputError(f"all {PLACES_MAX} places for cases are taken: delete the groups of project {PROJECT} whose run is over")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _born_rules(default_id: str) -> list[pb.RuleSpec]:
    """Return what a default group is born with."""
    return [
        pb.RuleSpec(direction=pb.DIRECTION_EGRESS, protocol=pb.PROTOCOL_ANY, cidr="0.0.0.0/0"),
        pb.RuleSpec(direction=pb.DIRECTION_EGRESS, protocol=pb.PROTOCOL_ANY, cidr="::/0"),
        pb.RuleSpec(direction=pb.DIRECTION_INGRESS, protocol=pb.PROTOCOL_ANY, group_id=default_id),
    ]
