"""The agents: whether they are there, in time, and enforce what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from secgroups.cli import pb
from secgroups.cli.diagnosis.controller import CLOCKS_APART_MAX_S
from secgroups.cli.diagnosis.finding import Finding, some

if TYPE_CHECKING:
    from secgroups.cli.client import Client

# What has been late for longer than this is late for a reason.
LAG_MAX_S = 5.0


def look_at_agents(client: Client) -> Iterator[Finding]:
    """Yield what is wrong with the agents. CallError."""
    agents = [agent for page in client.pages(client.agents.ListAgents, pb.ListAgentsRequest()) for agent in page.agents]
    away = [agent.id for agent in agents if not agent.connected and agent.server_count]
    if away:
        yield Finding(
            what="AGENT_AWAY",
            text=f"{some('agent', away)} not connected, and servers name it",
            advice="start it, look into its log, or move its servers: sgctl server set ID --agent OTHER",
        )
    for agent in agents:
        yield from _look_at(agent)


def _look_at(agent: pb.Agent) -> Iterator[Finding]:
    if agent.rejected:
        first = agent.rejected[0]
        yield Finding(
            what="AGENT_REJECTS",
            text=f"agent {agent.id} can't enforce {len(agent.rejected)} objects: {first.message}",
            advice="its last good rules stay in force; upgrade it, or change what it names: sgctl agent show " + agent.id,
        )
    if agent.HasField("held_back"):
        yield Finding(
            what="AGENT_HOLDS_BACK",
            text=f"agent {agent.id} holds back a state that would remove {agent.held_back.servers_removed} servers",
            advice="if they may go, restart it with a larger --max-removal; else find out what became of the database",
        )
    if agent.connected and agent.HasField("lag") and agent.lag.ToMilliseconds() > LAG_MAX_S * 1000:
        yield Finding(
            what="AGENT_LATE",
            text=f"agent {agent.id} has had changes to make for {agent.lag.ToMilliseconds() / 1000:.0f} s",
            advice="look whether it, or the way to it, is overloaded: sgctl agent show " + agent.id,
        )
    ahead_s = agent.clock_ahead.ToNanoseconds() / 1e9
    if agent.connected and abs(ahead_s) > CLOCKS_APART_MAX_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        yield Finding(
            what="AGENT_CLOCK",
            text=f"the clock of agent {agent.id} is {abs(ahead_s):.0f} s {way} the controller's",
            advice="set both by NTP: until then its delays are measured wrong, and its certificate may not count",
        )
