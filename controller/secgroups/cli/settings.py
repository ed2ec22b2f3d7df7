"""What the global options say; every command gets it as ``ctx.obj``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secgroups.cli.client import AgentClient, Client

CONTROLLER_DEFAULT = "127.0.0.1:7700"
AGENT_DEFAULT = "127.0.0.1:7710"
PROJECT_DEFAULT = "default"
TIMEOUT_DEFAULT_S = 10.0
TIMEOUT_MAX_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where to ask, for which project, and how long to wait for an answer.

    ``project_given`` tells whether somebody chose the project; else a file may name it. ``color`` is False if none is wanted.
    """

    controller: str = CONTROLLER_DEFAULT
    project: str = PROJECT_DEFAULT
    project_given: bool = False
    timeout_s: float = TIMEOUT_DEFAULT_S
    color: bool = True

    def connect(self, project: str | None = None) -> Client:
        """Return a client of the controller, to be used as a context manager. Connects with the first call."""
        from secgroups.cli.client import Client

        return Client(self.controller, project or self.project, self.timeout_s)

    def connect_agent(self, address: str) -> AgentClient:
        """Return a client of the agent at ``address``, to be used as a context manager."""
        from secgroups.cli.client import AgentClient

        return AgentClient(address, self.timeout_s)
