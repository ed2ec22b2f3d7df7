"""How groups, rules, servers, agents and flows are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from secgroups.cli import pb
from secgroups.cli.output import Column, Kind, data_of
from secgroups.cli.rule_messages import draft_of
from secgroups.cli.traffic_words import direction_word, end_text, protocol_word, short_id, state_word

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp


def time_text(moment: Timestamp) -> str:
    """Return a time as ``2026-01-31T12:00:00Z``; empty if there is none."""
    return f"{moment.ToDatetime():%Y-%m-%dT%H:%M:%SZ}" if moment.seconds or moment.nanos else ""


def _duration_text(duration: Duration) -> str:
    return f"{duration.ToMilliseconds() / 1000:.1f}s"


def groups() -> Kind[pb.Group]:
    """Return how groups are shown."""
    columns = [
        Column[pb.Group]("id", lambda group: group.id),
        Column[pb.Group]("name", lambda group: group.name),
        Column[pb.Group]("rules", lambda group: str(group.rule_count)),
        Column[pb.Group]("servers", lambda group: str(group.server_count)),
        Column[pb.Group]("description", lambda group: group.description),
        Column[pb.Group]("created", lambda group: time_text(group.created), wide=True),
        Column[pb.Group]("updated", lambda group: time_text(group.updated), wide=True),
        Column[pb.Group]("etag", lambda group: group.etag, wide=True),
    ]
    return Kind(columns=columns, name=lambda group: group.name, data=data_of)


def rules(names: Mapping[str, str]) -> Kind[pb.Rule]:
    """Return how rules are shown; ``names`` has the names of groups by id."""
    columns = [
        Column[pb.Rule]("id", lambda rule: rule.id),
        Column[pb.Rule]("group", lambda rule: names.get(rule.group_id, rule.group_id)),
        *_spec_columns(names),
        Column[pb.Rule]("description", lambda rule: rule.spec.description),
        Column[pb.Rule]("created", lambda rule: time_text(rule.created), wide=True),
        Column[pb.Rule]("etag", lambda rule: rule.etag, wide=True),
    ]
    return Kind(columns=columns, name=lambda rule: rule.id, data=data_of)


def _spec_columns(names: Mapping[str, str]) -> list[Column[pb.Rule]]:
    return [
        Column("direction", lambda rule: draft_of(rule.spec, names).direction),
        Column("protocol", lambda rule: draft_of(rule.spec, names).protocol),
        Column("ports", lambda rule: draft_of(rule.spec, names).ports_text),
        Column("remote", lambda rule: draft_of(rule.spec, names).remote.text),
    ]


def effective_rules(ruleset: pb.EffectiveRuleset) -> Kind[pb.EffectiveRule]:
    """Return how the rules in force at a server are shown."""
    names = {group.group_id: group.name for group in ruleset.remote_groups}
    names.update((rule.rule.group_id, rule.group_name) for rule in ruleset.rules)
    columns = [
        Column[pb.EffectiveRule]("id", lambda item: item.rule.id),
        Column[pb.EffectiveRule]("group", lambda item: item.group_name),
        Column[pb.EffectiveRule]("direction", lambda item: draft_of(item.rule.spec, names).direction),
        Column[pb.EffectiveRule]("protocol", lambda item: draft_of(item.rule.spec, names).protocol),
        Column[pb.EffectiveRule]("ports", lambda item: draft_of(item.rule.spec, names).ports_text),
        Column[pb.EffectiveRule]("remote", lambda item: draft_of(item.rule.spec, names).remote.text),
        Column[pb.EffectiveRule]("description", lambda item: item.rule.spec.description),
    ]
    return Kind(columns=columns, name=lambda item: item.rule.id, data=data_of)


def servers(names: Mapping[str, str]) -> Kind[pb.Server]:
    """Return how servers are shown; ``names`` has the names of groups by id."""
    columns = [
        Column[pb.Server]("id", lambda server: server.id),
        Column[pb.Server]("name", lambda server: server.name),
        Column[pb.Server]("addresses", lambda server: ", ".join(server.addresses)),
        Column[pb.Server]("agent", lambda server: server.agent_id),
        Column[pb.Server]("groups", lambda server: ", ".join(sorted(names.get(group, group) for group in server.group_ids))),
        Column[pb.Server]("created", lambda server: time_text(server.created), wide=True),
        Column[pb.Server]("updated", lambda server: time_text(server.updated), wide=True),
        Column[pb.Server]("etag", lambda server: server.etag, wide=True),
    ]
    return Kind(columns=columns, name=lambda server: server.id, data=data_of)


def tokens() -> Kind[pb.Token]:
    """Return how tokens are shown."""
    columns = [
        Column[pb.Token]("id", lambda token: token.id),
        Column[pb.Token]("name", lambda token: token.name),
        Column[pb.Token]("role", lambda token: pb.Role.Name(token.role).removeprefix("ROLE_").lower()),
        Column[pb.Token]("project", lambda token: token.project),
        Column[pb.Token]("created", lambda token: time_text(token.created)),
        Column[pb.Token]("expires", lambda token: time_text(token.expires)),
    ]
    return Kind(columns=columns, name=lambda token: token.id, data=data_of)


def limits() -> Kind[pb.Limit]:
    """Return how the limits of a project are shown."""
    columns = [
        Column[pb.Limit]("limit", lambda limit: _limit_name(limit.kind)),
        Column[pb.Limit]("most", lambda limit: str(limit.most)),
        Column[pb.Limit]("used", lambda limit: str(limit.used)),
        Column[pb.Limit]("used_by", lambda limit: limit.used_by),
        Column[pb.Limit]("default", lambda limit: str(limit.default_most)),
        Column[pb.Limit]("override", lambda limit: str(limit.override_most) if limit.HasField("override_most") else ""),
    ]
    return Kind(columns=columns, name=lambda limit: _limit_name(limit.kind), data=data_of)


def limit_overrides() -> Kind[pb.LimitOverrides]:
    """Return how projects with limits of their own are shown."""
    columns = [
        Column[pb.LimitOverrides]("project", lambda found: found.project),
        Column[pb.LimitOverrides]("limits", lambda found: ", ".join(f"{name}: {most}" for name, most in _limits_of(found).items())),
        Column[pb.LimitOverrides]("updated", lambda found: time_text(found.updated)),
    ]
    return Kind(columns=columns, name=lambda found: found.project, data=data_of)


def _limit_name(kind: pb.LimitKind.ValueType) -> str:
    return pb.LimitKind.Name(kind).removeprefix("LIMIT_KIND_").lower()


def _limits_of(overrides: pb.LimitOverrides) -> dict[str, str]:
    return {_limit_name(each.kind): str(each.most) for each in overrides.overrides}


def changes() -> Kind[pb.Change]:
    """Return how entries of the change log are shown."""
    columns = [
        Column[pb.Change]("revision", lambda change: str(change.revision)),
        Column[pb.Change]("time", lambda change: time_text(change.time)),
        Column[pb.Change]("who", lambda change: change.token_id),
        Column[pb.Change]("from", lambda change: change.peer),
        Column[pb.Change]("what", _what_text),
        Column[pb.Change]("object", lambda change: _object_text(change.after if change.HasField("after") else change.before)),
        Column[pb.Change]("change", _difference_text),
    ]
    return Kind(columns=columns, name=lambda change: str(change.revision), data=data_of)


def change_line(change: pb.Change) -> str:
    """Return an entry of the change log in one line."""
    return "  ".join(column.text(change) or "-" for column in changes().columns)


def _what_text(change: pb.Change) -> str:
    if not change.HasField("before"):
        return "made"
    return "changed" if change.HasField("after") else "deleted"


def _object_text(thing: pb.ChangedObject) -> str:
    match thing.WhichOneof("object"):
        case "group":
            return f"group {thing.group.name}"
        case "rule":
            return f"rule {thing.rule.id}"
        case "token":
            return f"token {thing.token.id}"
        case "certificate":
            return f"certificate {thing.certificate.serial}"
        case "revocation":
            return f"revocation of agent {thing.revocation.agent_id}"
        case "limits":
            return f"limits of project {thing.limits.project}"
    return f"server {thing.server.project}/{thing.server.id}"


def _difference_text(change: pb.Change) -> str:
    """Return which fields have other values, with both; of an object that came or went, what people know it by."""
    if change.HasField("before") and change.HasField("after"):
        old, new = (_facts(thing) for thing in (change.before, change.after))
        return ", ".join(f"{name}: {old[name] or 'none'} -> {new[name] or 'none'}" for name in new if old.get(name) != new[name])
    facts = _facts(change.after if change.HasField("after") else change.before)
    return ", ".join(f"{name}: {value}" for name, value in facts.items() if value)


def _facts(thing: pb.ChangedObject) -> dict[str, str]:
    match thing.WhichOneof("object"):
        case "group":
            return {"name": thing.group.name, "description": thing.group.description}
        case "rule":
            draft = draft_of(thing.rule.spec, {})
            words = (draft.direction, draft.protocol, draft.ports_text, draft.remote.text)
            return {
                "rule": " ".join(word for word in words if word),
                "group": thing.rule.group_id,
                "description": thing.rule.spec.description,
            }
        case "token":
            role = pb.Role.Name(thing.token.role).removeprefix("ROLE_").lower()
            token = thing.token
            return {"name": token.name, "role": role, "project": token.project, "expires": time_text(token.expires)}
        case "certificate":
            return {"agent": thing.certificate.agent_id, "expires": time_text(thing.certificate.expires)}
        case "revocation":
            return {"revoked": time_text(thing.revocation.revoked)}
        case "limits":
            own = _limits_of(thing.limits)
            return {_limit_name(kind): own.get(_limit_name(kind), "default") for kind in pb.LimitKind.values() if kind}
    server = thing.server
    return {
        "name": server.name,
        "addresses": " ".join(server.addresses),
        "agent": server.agent_id,
        "groups": " ".join(sorted(server.group_ids)),
    }


def agents() -> Kind[pb.Agent]:
    """Return how agents are shown."""
    columns = [
        Column[pb.Agent]("id", lambda agent: agent.id),
        Column[pb.Agent]("connected", lambda agent: "yes" if agent.connected else "no"),
        Column[pb.Agent]("applied", lambda agent: str(agent.applied_revision)),
        Column[pb.Agent]("pending", lambda agent: str(agent.pending_revisions)),
        Column[pb.Agent]("lag", lambda agent: _duration_text(agent.lag) if agent.HasField("lag") else ""),
        Column[pb.Agent]("servers", lambda agent: str(agent.server_count)),
        Column[pb.Agent]("heard", _heard_text),
        Column[pb.Agent]("rejected", lambda agent: str(len(agent.rejected))),
        Column[pb.Agent]("held_back", _held_back_text),
        Column[pb.Agent]("host", lambda agent: agent.host, wide=True),
        Column[pb.Agent]("version", lambda agent: agent.version, wide=True),
        Column[pb.Agent]("connected_since", lambda agent: time_text(agent.connected_since), wide=True),
        Column[pb.Agent]("flows", lambda agent: str(agent.report.flows) if agent.HasField("report") else "", wide=True),
        Column[pb.Agent]("denies", lambda agent: str(agent.report.denies) if agent.HasField("report") else "", wide=True),
        Column[pb.Agent]("in_force_p50", lambda agent: _delay_text(agent, 0.50), wide=True),
        Column[pb.Agent]("in_force_p99", lambda agent: _delay_text(agent, 0.99), wide=True),
        Column[pb.Agent]("boot_id", lambda agent: agent.boot_id, wide=True),
    ]
    return Kind(columns=columns, name=lambda agent: agent.id, data=data_of)


def stats() -> Kind[pb.GetStatsResponse]:
    """Return how an agent's own figures are shown, but for what it counts by state, reason and rule."""
    columns = [
        Column[pb.GetStatsResponse]("agent", lambda figures: figures.agent_id),
        Column[pb.GetStatsResponse]("connected", lambda figures: "yes" if figures.connected else "no"),
        Column[pb.GetStatsResponse]("heard", _heard_text),
        Column[pb.GetStatsResponse]("applied", lambda figures: str(figures.applied_revision)),
        Column[pb.GetStatsResponse]("from_cache", lambda figures: "yes" if figures.from_cache else "no"),
        Column[pb.GetStatsResponse]("held_back", _held_back_text),
        Column[pb.GetStatsResponse]("servers", lambda figures: str(figures.servers)),
        Column[pb.GetStatsResponse]("groups", lambda figures: str(figures.groups)),
        Column[pb.GetStatsResponse]("sets", lambda figures: str(figures.sets)),
        Column[pb.GetStatsResponse]("flows", lambda figures: str(figures.flows)),
        Column[pb.GetStatsResponse]("flows_max", lambda figures: str(figures.flows_max)),
        Column[pb.GetStatsResponse]("evicted", lambda figures: str(figures.evicted)),
    ]
    return Kind(columns=columns, name=lambda figures: figures.agent_id, data=data_of)


def _heard_text(known: pb.Agent | pb.GetStatsResponse) -> str:
    return f"{_duration_text(known.staleness)} ago" if known.HasField("staleness") else "never"


def _held_back_text(known: pb.Agent | pb.GetStatsResponse) -> str:
    if not known.HasField("held_back"):
        return ""
    return f"{known.held_back.servers_removed} of {known.held_back.servers_held} servers"


def _delay_text(agent: pb.Agent, share: float) -> str:
    """Return the bound that a share of an agent's changes were in force within, empty if there were none."""
    delays = agent.report.commit_to_in_force
    total, seen = sum(delays.counts), 0
    if not total or not delays.upper_bounds_micros or len(delays.counts) != len(delays.upper_bounds_micros) + 1:
        return ""
    for bound_us, count in zip(delays.upper_bounds_micros, delays.counts, strict=False):
        seen += count
        if seen >= share * total:
            return f"<= {bound_us / 1e3:g} ms"
    return f"> {delays.upper_bounds_micros[-1] / 1e3:g} ms"


def flows() -> Kind[pb.Flow]:
    """Return how flows are shown."""
    columns = [
        Column[pb.Flow]("server", lambda flow: flow.server),
        Column[pb.Flow]("protocol", lambda flow: protocol_word(flow, flow.local_address)),
        Column[pb.Flow]("direction", lambda flow: direction_word(flow.opening_direction)),
        Column[pb.Flow]("local", lambda flow: end_text(flow.local_address, flow.local_port)),
        Column[pb.Flow]("remote", lambda flow: end_text(flow.remote_address, flow.remote_port)),
        Column[pb.Flow]("icmp", lambda flow: f"type {flow.icmp_type} id {flow.icmp_id}" if flow.HasField("icmp_type") else ""),
        Column[pb.Flow]("state", state_word),
        Column[pb.Flow]("answered", lambda flow: "yes" if flow.answered else "no"),
        Column[pb.Flow]("packets", lambda flow: f"{flow.opening_packets}/{flow.reply_packets}"),
        Column[pb.Flow]("bytes", lambda flow: f"{flow.opening_bytes}/{flow.reply_bytes}"),
        Column[pb.Flow]("age", lambda flow: _duration_text(flow.age)),
        Column[pb.Flow]("idle", lambda flow: _duration_text(flow.idle)),
        Column[pb.Flow]("remaining", lambda flow: _duration_text(flow.remaining)),
        Column[pb.Flow]("rule", lambda flow: short_id(flow.rule_id)),
        Column[pb.Flow]("rule_id", lambda flow: flow.rule_id, wide=True),
        Column[pb.Flow]("group_id", lambda flow: flow.group_id, wide=True),
    ]
    return Kind(columns=columns, name=lambda flow: flow.server, data=data_of)
