"""Settings of the agent: flags over environment over file over defaults; what is not known is refused.

A flag ``--flows-max`` is ``SECGROUPS_AGENT_FLOWS_MAX`` in the environment and ``flows_max`` in the file (TOML, no tables).
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

from secgroups.agent.errors import ConfigError
from secgroups.agent.kernel.marks import DEFAULT_MASK, MarkLayout
from secgroups.agent.kernel.settings import DEFAULT_LOG_GROUP, KernelSettings
from secgroups.agent.settings import EngineSettings

ENVIRONMENT_PREFIX = "SECGROUPS_AGENT_"
ID_CHARACTERS_MAX = 128
CONTROLLER, CONTROLLER_PLAIN = "127.0.0.1:7702", "127.0.0.1:7700"
ENFORCE_NFTABLES = "nftables"
LOG_LEVELS = ("debug", "info", "warning", "error")
# IFNAMSIZ, less the zero at the end.
INTERFACE_BYTES_MAX = 15

_ENGINE = EngineSettings()
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What the agent was started with. ConfigError, one line that names the setting, its value and the bound, if it can't work."""

    agent_id: str = _setting("", "id under which servers name this agent")
    controller: str = _setting(
        "",
        f"where the controller listens for agents: HOST:PORT or unix:PATH (default {CONTROLLER}, plain {CONTROLLER_PLAIN})",
    )
    listen: str = _setting("127.0.0.1:7710", "where to answer verdicts: HOST:PORT (port 0 takes a free one) or unix:PATH")
    listen_tls: bool = _setting(False, "answer verdicts with TLS, to operators and this agent alone; beyond loopback, always so")
    state_dir: str = _setting("", "folder for the cached state; of this agent alone")
    plaintext: bool = _setting(False, "subscribe without TLS; for controllers with --plaintext, on loopback and Unix sockets only")
    tls_dir: str = _setting("", "folder with ca.pem, agent.pem and agent-key.pem from sgctl agent enroll; none: tls in state_dir")
    flow_table: str = _setting("", "file to keep flows in for the next start, best on a tmpfs; none: in memory alone")
    flows_max: int = _setting(_ENGINE.flows_max, "capacity of the flow table")
    server_flows_max: int = _setting(_ENGINE.server_flows_max, "most flows of one server")
    shards: int = _setting(_ENGINE.shards, "how many threads may decide at once; servers and tables are divided among them")
    tcp_loose_s: int = _setting(0, "accept TCP in mid-stream for this many seconds after the start")
    essential_services: bool = _setting(True, "let DHCP and neighbour discovery pass whatever the rules say")
    max_removal: float = _setting(
        1.0, "largest share of the servers in force that a snapshot of the controller may remove, above 0; 1: any"
    )
    reconnect_min_s: float = _setting(0.5, "bound of the first wait before connecting again")
    reconnect_max_s: float = _setting(30.0, "bound of every wait before connecting again")
    enforce: str = _setting("", "nftables: this host's kernel enforces for real packets as well; none: verdicts only")
    interface: str = _setting("", "SERVER=IFNAME: a server (project/id) found by interface too, with --enforce; may be repeated")
    kernel_mark_mask: str = _setting(f"{DEFAULT_MASK:#x}", "bits of connection marks that are ours, with --enforce")
    kernel_log_group: int = _setting(
        DEFAULT_LOG_GROUP, "nflog group by which the kernel tells who watches verdicts, with --enforce"
    )
    clean_up: bool = _setting(False, "remove from the kernel what --enforce put there, and end")
    log_level: str = _setting("info", "debug, info, warning or error")
    metrics_listen: str = _setting("", "where to answer Prometheus over HTTP: loopback HOST:PORT; none: nowhere")
    ready_file: str = _setting("", "file to write the address to, as JSON, once the agent serves")

    def __post_init__(self) -> None:
        _check_id(self.agent_id)
        if not self.state_dir:
            raise ConfigError("state_dir is missing: name a folder for the cached state (--state-dir DIR)")
        if not self.controller:
            object.__setattr__(self, "controller", CONTROLLER_PLAIN if self.plaintext else CONTROLLER)
        _check_endpoint("controller", self.controller, port_min=1)
        _check_endpoint("listen", self.listen, port_min=0)
        if self.plaintext and self.answers_with_tls:
            raise ConfigError(f"listen {self.listen}, but for loopback and unix:PATH, and listen_tls need TLS, not --plaintext")
        if self.metrics_listen:
            _check_tcp_on_loopback("metrics_listen", self.metrics_listen)
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level is {self.log_level!r}, must be one of {', '.join(LOG_LEVELS)}")
        if not 0 < self.max_removal <= 1:
            raise ConfigError(f"max_removal {self.max_removal} is not a share: it must be above 0 and at most 1")
        if not 0.001 <= self.reconnect_min_s <= self.reconnect_max_s <= 3600:
            raise ConfigError(
                f"reconnect_min_s {self.reconnect_min_s} and reconnect_max_s {self.reconnect_max_s} must ascend within 0.001..3600"
            )
        if self.plaintext and not self.controller.startswith("unix:") and not _is_loopback(self.controller.rpartition(":")[0]):
            raise ConfigError(
                f"controller {self.controller} is not on loopback; without TLS only loopback and unix:PATH are allowed"
            )
        if self.plaintext and self.tls_dir:
            raise ConfigError("plaintext and tls_dir exclude each other")
        self.engine_settings()
        if self.enforce not in ("", ENFORCE_NFTABLES):
            raise ConfigError(f"enforce {self.enforce!r} is not known; known is {ENFORCE_NFTABLES}")
        if (self.interface or self.clean_up) and not self.enforce:
            raise ConfigError(f"interface and clean_up are for --enforce {ENFORCE_NFTABLES}, which is not set")
        self.kernel_settings()

    @property
    def answers_with_tls(self) -> bool:
        """Whether verdicts are for those alone who show a certificate: everywhere but on this host."""
        if self.listen_tls:
            return True
        return not self.listen.startswith("unix:") and not _is_loopback(self.listen.rpartition(":")[0])

    def engine_settings(self) -> EngineSettings:
        """Return the settings of the firewall."""
        return EngineSettings(
            essential_services=self.essential_services,
            flows_max=self.flows_max,
            server_flows_max=self.server_flows_max,
            tcp_loose_s=self.tcp_loose_s,
            shards=self.shards,
        )

    def kernel_settings(self) -> KernelSettings:
        """Return the settings of the kernel's part."""
        return KernelSettings(
            marks=MarkLayout(_bits(self.kernel_mark_mask)),
            essential_services=self.essential_services,
            ports=_find_ports(self.interface),
            log_group=self.kernel_log_group,
        )


def _find_ports(value: str) -> dict[str, str]:
    """Return the interface of each server."""
    ports: dict[str, str] = {}
    for item in filter(None, value.split(",")):
        server, _, name = item.rpartition("=")
        if "/" not in server or not 0 < len(name.encode()) <= INTERFACE_BYTES_MAX or "/" in name or any(map(str.isspace, name)):
            raise ConfigError(
                f"interface {item!r} is not SERVER=IFNAME, such as default/web-1=tap0, the name of 1 to {INTERFACE_BYTES_MAX} bytes"
            )
        if server in ports or name in ports.values():
            raise ConfigError(f"interface {item!r}: the server or the interface is named twice")
        ports[server] = name
    return ports


def _bits(value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise ConfigError(f"kernel_mark_mask {value!r} is no number, such as {DEFAULT_MASK:#x}") from None


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> AgentConfig:
    """Return the settings. ConfigError if they can't work or a flag does not exist; SystemExit for ``--help`` and ``--version``."""
    parser = _parser()
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        given = unknown[0].partition("=")[0]
        raise ConfigError(f"argument {given} is not known{_nearest(given, parser.flags)}")
    flags = vars(namespace)
    file = flags.pop("config") or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG", "")
    values = _from_file(Path(file)) if file else {}
    values |= _from_environment(environment)
    values |= {name: ",".join(value) if isinstance(value, list) else value for name, value in flags.items() if value is not None}
    return AgentConfig(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell a mistake in the way of all others: one line, without the usage."""
        raise ConfigError(message)

    @property
    def flags(self) -> list[str]:
        """All flags there are."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


def _parser() -> _Parser:
    parser = _Parser(
        prog="secgroups-agent", description="Enforce security groups for the servers of one machine.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('secgroups')}")
    parser.add_argument("--config", metavar="FILE.toml", help="file with settings")
    for each in fields(AgentConfig):
        flag = "--" + each.name.replace("_", "-")
        text = each.metadata["help"] + (f" (default {each.default})" if each.default != "" else "")
        if isinstance(each.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif each.name == "interface":
            parser.add_argument(flag, action="append", help=text, metavar="SERVER=IFNAME")
        else:
            parser.add_argument(flag, type=type(each.default), default=None, help=text, metavar=each.name.upper())
    return parser


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {f"{ENVIRONMENT_PREFIX}{each.name.upper()}": each for each in fields(AgentConfig)}
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        if name not in known:
            raise ConfigError(f"environment variable {name} is not known{_nearest(name, known)}")
        each = known[name]
        try:
            values[each.name] = _TRUTH[text.lower()] if isinstance(each.default, bool) else _parsed(type(each.default), text)
        except (KeyError, ValueError):
            raise ConfigError(f"environment variable {name} is {text!r}, not a {type(each.default).__name__}") from None
    return values


def _parsed(kind: type[Any], text: str) -> Any:
    return kind(text)


def _from_file(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"config file {file} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} is no TOML: {error}") from None
    kinds = {each.name: type(each.default) for each in fields(AgentConfig)}
    for name, value in found.items():
        if name not in kinds:
            raise ConfigError(f"config file {file}: unknown key {name}{_nearest(name, kinds)}")
        kind = kinds[name]
        if kind is float and type(value) is int:
            found[name] = float(value)
        elif type(value) is not kind:
            raise ConfigError(f"config file {file}: {name} is {value!r}, not a {kind.__name__}")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def _check_id(agent_id: str) -> None:
    if not agent_id:
        raise ConfigError("agent_id is missing: give the id under which servers name this agent (--agent-id ID)")
    if len(agent_id) > ID_CHARACTERS_MAX:
        raise ConfigError(f"agent_id has {len(agent_id)} characters, the most allowed is {ID_CHARACTERS_MAX}")
    if not agent_id.isprintable() or "/" in agent_id or agent_id != agent_id.strip():
        raise ConfigError(f"agent_id {agent_id!r} must be printable, without slash and without blanks at either end")


def _check_endpoint(name: str, value: str, *, port_min: int) -> None:
    if value.startswith("unix:"):
        if value == "unix:":
            raise ConfigError(f"{name} {value} names no path")
        return
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not port_min <= int(port) <= 65_535:
        raise ConfigError(f"{name} {value!r} is neither HOST:PORT, port {port_min} to 65535, nor unix:PATH")


def _check_tcp_on_loopback(name: str, value: str) -> None:
    if value.startswith("unix:"):
        raise ConfigError(f"{name} {value} must be HOST:PORT on loopback")
    _check_endpoint(name, value, port_min=0)
    if not _is_loopback(value.rpartition(":")[0]):
        raise ConfigError(f"{name} {value} is not on loopback; without TLS only loopback is allowed")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
