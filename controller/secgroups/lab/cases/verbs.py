"""From YAML to the action of a step: one reader for each verb.

Every reader takes the value of the verb and the error code that the step expects, empty where the step must succeed.
"""

from __future__ import annotations

from collections.abc import Callable

from secgroups.agent.flow import TcpFlags
from secgroups.lab.cases.model import (
    Action,
    AddGroup,
    AddRule,
    AddServer,
    Advance,
    Attach,
    DeleteEqualRule,
    DeleteGroup,
    DeleteRule,
    Detach,
    Flow,
    FlowPacket,
    LoosePacket,
    Protocol,
    Ref,
    RemoveServer,
    RenameGroup,
    RestartAgent,
    SetAddresses,
    SetGroups,
    SetRules,
    StartController,
    StopController,
)
from secgroups.lab.cases.nodes import Field
from secgroups.lab.cases.setups import (
    DIRECTIONS,
    GROUP_KEYS,
    RULE_KEYS,
    SERVER_KEYS,
    optional,
    read_end,
    read_group,
    read_packet_protocol,
    read_ref,
    read_refs,
    read_rule,
    read_rules,
    read_server,
    read_server_addresses,
    ref_of,
)

Reader = Callable[[Field, str], Action]

TCP_FLAGS = tuple(str(flag.name).lower() for flag in TcpFlags)

_WHERE_KEYS = ("at", "direction")
_ICMP_KEYS = ("icmp_type", "icmp_code", "icmp_id")
_FLOW_KEYS = ("from", "to", "protocol", "port", "source_port", *_ICMP_KEYS, *_WHERE_KEYS)
_LOOSE_KEYS = (*_FLOW_KEYS, "tcp_flags", "quotes", "fragment", "ip_id")
_FLOW_PACKET_KEYS = ("flow", "from", "tcp_flags", "fragment", "ip_id", *_WHERE_KEYS)


def _flow(field: Field, refused: str) -> Action:
    return _flow_of(field.keyed(_FLOW_KEYS, required=("from", "to", "protocol")), "")


def _open(field: Field, refused: str) -> Action:
    entries = field.keyed(("as", *_FLOW_KEYS), required=("as", "from", "to", "protocol"))
    return _flow_of(entries, entries["as"].text())


def _flow_of(entries: dict[str, Field], name: str) -> Flow:
    return Flow(
        source=read_end(entries["from"]),
        destination=read_end(entries["to"]),
        protocol=read_packet_protocol(entries["protocol"]),
        port=optional(entries, "port", _word),
        source_port=optional(entries, "source_port", _word),
        icmp_type=optional(entries, "icmp_type", _byte),
        icmp_code=optional(entries, "icmp_code", _byte),
        icmp_id=optional(entries, "icmp_id", _word),
        at=optional(entries, "at", read_ref),
        direction=optional(entries, "direction", lambda value: value.choice(DIRECTIONS)),
        name=name,
    )


def _packet(field: Field, refused: str) -> Action:
    if field.is_mapping and "flow" in field.entries():
        return _flow_packet(field)
    entries = field.keyed(_LOOSE_KEYS, required=("from", "to"))
    quotes = None
    if "quotes" in entries:
        quotes = entries["quotes"].keyed(("flow",), required=("flow",))["flow"].text()
    elif "protocol" not in entries:
        raise field.refusal("protocol is missing")
    return LoosePacket(
        source=read_end(entries["from"]),
        destination=read_end(entries["to"]),
        protocol=read_packet_protocol(entries["protocol"]) if "protocol" in entries else Protocol.ICMP,
        port=optional(entries, "port", _word),
        source_port=optional(entries, "source_port", _word),
        tcp_flags=optional(entries, "tcp_flags", _flags),
        icmp_type=optional(entries, "icmp_type", _byte),
        icmp_code=optional(entries, "icmp_code", _byte),
        icmp_id=optional(entries, "icmp_id", _word),
        quotes=quotes,
        fragment=optional(entries, "fragment", _fragment),
        ip_id=optional(entries, "ip_id", _word),
        at=optional(entries, "at", read_ref),
        direction=optional(entries, "direction", lambda value: value.choice(DIRECTIONS)),
    )


def _flow_packet(field: Field) -> FlowPacket:
    entries = field.keyed(_FLOW_PACKET_KEYS, required=("flow", "from"))
    return FlowPacket(
        flow=entries["flow"].text(),
        sender=read_end(entries["from"]),
        tcp_flags=optional(entries, "tcp_flags", _flags),
        fragment=optional(entries, "fragment", _fragment),
        ip_id=optional(entries, "ip_id", _word),
        at=optional(entries, "at", read_ref),
        direction=optional(entries, "direction", lambda value: value.choice(DIRECTIONS)),
    )


def _add_rule(field: Field, refused: str) -> Action:
    entries = field.keyed(("group", "as", *RULE_KEYS), required=("group",))
    return AddRule(group=read_ref(entries["group"]), rule=read_rule(field, entries, refused))


def _delete_rule(field: Field, refused: str) -> Action:
    if field.is_mapping and "rule" in field.entries():
        return DeleteRule(alias=field.keyed(("rule",))["rule"].text())
    entries = field.keyed(("group", *RULE_KEYS), required=("group",))
    return DeleteEqualRule(group=read_ref(entries["group"]), rule=read_rule(field, entries, refused))


def _set_rules(field: Field, refused: str) -> Action:
    entries = field.keyed(("group", "rules"), required=("group", "rules"))
    return SetRules(group=read_ref(entries["group"]), rules=read_rules(entries["rules"], refused))


def _server_and_group(field: Field) -> tuple[Ref, Ref]:
    entries = field.keyed(("server", "group"), required=("server", "group"))
    return read_ref(entries["server"]), read_ref(entries["group"])


def _attach(field: Field, refused: str) -> Action:
    server, group = _server_and_group(field)
    return Attach(server=server, group=group)


def _detach(field: Field, refused: str) -> Action:
    server, group = _server_and_group(field)
    return Detach(server=server, group=group)


def _set_groups(field: Field, refused: str) -> Action:
    entries = field.keyed(("server", "groups"), required=("server", "groups"))
    return SetGroups(server=read_ref(entries["server"]), groups=read_refs(entries["groups"]))


def _add_server(field: Field, refused: str) -> Action:
    entries = field.keyed(("name", *SERVER_KEYS), required=("name",))
    return AddServer(setup=read_server(read_ref(entries["name"], refused), field, entries, refused))


def _remove_server(field: Field, refused: str) -> Action:
    return RemoveServer(server=read_ref(field))


def _set_addresses(field: Field, refused: str) -> Action:
    entries = field.keyed(("server", "addresses"), required=("server", "addresses"))
    return SetAddresses(server=read_ref(entries["server"]), addresses=read_server_addresses(entries["addresses"], refused))


def _add_group(field: Field, refused: str) -> Action:
    entries = field.keyed(("name", *GROUP_KEYS), required=("name",))
    return AddGroup(setup=read_group(read_ref(entries["name"], refused), entries, refused))


def _delete_group(field: Field, refused: str) -> Action:
    return DeleteGroup(group=read_ref(field))


def _rename_group(field: Field, refused: str) -> Action:
    entries = field.keyed(("group", "name"), required=("group", "name"))
    group, name = read_ref(entries["group"]), entries["name"].text()
    new = ref_of(name, refused)
    # project/NAME may be written here too, but no group moves to another project.
    return RenameGroup(group=group, name=new.name if new.project is not None and new.project == group.project else name)


def _advance(field: Field, refused: str) -> Action:
    return Advance(seconds=field.seconds())


def _restart_agent(field: Field, refused: str) -> Action:
    return RestartAgent(warm=field.choice(("warm", "cold")) == "warm")


def _stop_controller(field: Field, refused: str) -> Action:
    return StopController()


def _start_controller(field: Field, refused: str) -> Action:
    return StartController()


TRAFFIC: dict[str, Reader] = {"flow": _flow, "open": _open, "packet": _packet}
CHANGES: dict[str, Reader] = {
    "add_rule": _add_rule,
    "delete_rule": _delete_rule,
    "set_rules": _set_rules,
    "attach": _attach,
    "detach": _detach,
    "set_groups": _set_groups,
    "add_server": _add_server,
    "remove_server": _remove_server,
    "set_addresses": _set_addresses,
    "add_group": _add_group,
    "delete_group": _delete_group,
    "rename_group": _rename_group,
}
CONTROLS: dict[str, Reader] = {
    "advance": _advance,
    "restart_agent": _restart_agent,
    "stop_controller": _stop_controller,
    "start_controller": _start_controller,
}
# Those that stand as a plain string, without a value.
PLAIN = ("stop_controller", "start_controller")


def _byte(field: Field) -> int:
    return field.whole(0, 255)


def _word(field: Field) -> int:
    return field.whole(0, 65_535)


def _fragment(field: Field) -> str:
    return field.choice(("first", "later"))


def _flags(field: Field) -> tuple[str, ...]:
    return tuple(item.choice(TCP_FLAGS) for item in field.items())
