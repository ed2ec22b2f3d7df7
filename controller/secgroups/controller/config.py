"""Settings of the controller: flags over environment over file over defaults; what is not known is refused.

A flag ``--data-dir`` is ``SECGROUPS_CONTROLLER_DATA_DIR`` in the environment and ``data_dir`` in the file (TOML, no tables).
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

from secgroups.controller.errors import ConfigError
from secgroups.controller.limits import LIMIT_MAX, LIMIT_MIN, LIMIT_NAMES, Limits, limit_max
from secgroups.controller.stream_settings import StreamSettings

ENVIRONMENT_PREFIX = "SECGROUPS_CONTROLLER_"
DRAIN_MAX_S = 600.0
IDLE_CONNECTION_MAX_S = 86_400.0
LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

_LIMITS = Limits()


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """What the controller was started with. ConfigError, one line with setting, value and bound, if it can't work."""

    listen: str = _setting("127.0.0.1:7700", "where to answer: HOST:PORT (port 0 takes a free one) or unix:PATH")
    agent_listen: str = _setting("127.0.0.1:7702", "where agents subscribe, with their certificates; same form; not in plain text")
    admin_listen: str = _setting("127.0.0.1:7701", "where to answer channelz and health, same form")
    plaintext: bool = _setting(False, "no TLS, and nobody is asked who it is; on loopback and Unix sockets only")
    tls_names: str = _setting("", "names and addresses under which others reach this controller, with commas between them")
    tls_cert: str = _setting("", "own certificate (PEM, with its chain) in place of one of the private authority")
    tls_key: str = _setting("", "key of the own certificate")
    tls_ca: str = _setting("", "what agents check the own certificate by (PEM); none: the private authority")
    metrics_listen: str = _setting("", "where to answer Prometheus over HTTP: loopback HOST:PORT; none: nowhere")
    data_dir: str = _setting("", "folder of the database secgroups.db; must exist unless --create is given")
    create: bool = _setting(False, "make the data directory if there is none")
    log_level: str = _setting("info", "debug (every call), info (changes and refusals), warning or error")
    drain_s: float = _setting(2.0, "how long calls may go on after SIGTERM")
    heartbeat_s: float = _setting(10.0, "an idle stream to an agent says something this often")
    calls_max: int = _setting(20_000, "most calls and streams at one time")
    connections_max: int = _setting(20_000, "most connections at one time to each address")
    idle_connection_s: float = _setting(300.0, "a connection without a call is closed after so long")
    calls_per_s: int = _setting(1_000, "most calls within a second with one token; not in plain text")
    streams_per_principal: int = _setting(1_000, "most streams and waits at one time with one token; not in plain text")
    watchers_max: int = _setting(10_000, "most streams of WatchEffectiveRuleset at one time")
    ready_file: str = _setting("", "file to write the addresses to, as JSON, once the controller serves")
    groups_per_project: int = _setting(_LIMITS.groups_per_project, "most groups of a project")
    rules_per_group: int = _setting(_LIMITS.rules_per_group, "most rules of a group")
    groups_per_server: int = _setting(_LIMITS.groups_per_server, "most groups of a server")
    servers_per_project: int = _setting(_LIMITS.servers_per_project, "most servers of a project")
    addresses_per_server: int = _setting(_LIMITS.addresses_per_server, "most addresses of a server")

    def __post_init__(self) -> None:
        if not self.data_dir:
            raise ConfigError("data_dir is missing: name the folder that keeps the database (--data-dir DIR)")
        for name in ("listen", "admin_listen", "agent_listen"):
            _check_endpoint(name, getattr(self, name), anywhere=not self.plaintext)
        if self.plaintext and (self.tls_names or self.tls_cert or self.tls_key or self.tls_ca):
            raise ConfigError("plaintext and tls_names, tls_cert, tls_key or tls_ca exclude each other")
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_ca and not self.tls_cert):
            raise ConfigError("tls_cert and tls_key go together, and tls_ca with them")
        if self.metrics_listen:
            if self.metrics_listen.startswith("unix:"):
                raise ConfigError(f"metrics_listen {self.metrics_listen} must be HOST:PORT on loopback")
            _check_endpoint("metrics_listen", self.metrics_listen, anywhere=False)
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level is {self.log_level!r}, must be one of {', '.join(LOG_LEVELS)}")
        if not 1 <= self.idle_connection_s <= IDLE_CONNECTION_MAX_S:
            raise ConfigError(f"idle_connection_s is {self.idle_connection_s:g}, must be 1 to {IDLE_CONNECTION_MAX_S:g}")
        if not 0 <= self.drain_s <= DRAIN_MAX_S:
            raise ConfigError(f"drain_s is {self.drain_s:g}, must be 0 to {DRAIN_MAX_S:g}")
        for name in ("calls_max", "connections_max", "calls_per_s", "streams_per_principal", "watchers_max", *LIMIT_NAMES):
            value = getattr(self, name)
            most = limit_max(name) if name in LIMIT_NAMES else LIMIT_MAX
            if not LIMIT_MIN <= value <= most:
                raise ConfigError(f"{name} is {value}, must be {LIMIT_MIN} to {most}")
        StreamSettings(heartbeat_s=self.heartbeat_s)

    def limits(self) -> Limits:
        """Return the limits of the model."""
        return Limits(**{name: getattr(self, name) for name in LIMIT_NAMES})


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> ControllerConfig:
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
    values |= {name: value for name, value in flags.items() if value is not None}
    return ControllerConfig(**values)


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
        prog="secgroups-controller", description="Keep security groups and tell agents what to enforce.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('secgroups')}")
    parser.add_argument("--config", metavar="FILE.toml", help="file with settings")
    for each in fields(ControllerConfig):
        flag = "--" + each.name.replace("_", "-")
        if isinstance(each.default, bool):
            parser.add_argument(flag, action="store_true", default=None, help=each.metadata["help"])
            continue
        text = each.metadata["help"] + (f" (default {each.default})" if each.default != "" else "")
        parser.add_argument(flag, type=type(each.default), default=None, help=text, metavar=each.name.upper())
    return parser


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {f"{ENVIRONMENT_PREFIX}{each.name.upper()}": each for each in fields(ControllerConfig)}
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        if name not in known:
            raise ConfigError(f"environment variable {name} is not known{_nearest(name, known)}")
        kind: type[Any] = type(known[name].default)
        try:
            values[known[name].name] = _TRUTH[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ConfigError(f"environment variable {name} is {text!r}, not a {kind.__name__}") from None
    return values


def _from_file(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"config file {file} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} is no TOML: {error}") from None
    kinds: dict[str, type[Any]] = {each.name: type(each.default) for each in fields(ControllerConfig)}
    for name, value in found.items():
        if name not in kinds:
            raise ConfigError(f"config file {file}: unknown key {name}{_nearest(name, kinds)}")
        if kinds[name] is float and type(value) is int:
            found[name] = float(value)
        elif type(value) is not kinds[name]:
            raise ConfigError(f"config file {file}: {name} is {value!r}, not a {kinds[name].__name__}")
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def _check_endpoint(name: str, value: str, *, anywhere: bool) -> None:
    if value.startswith("unix:"):
        if value == "unix:":
            raise ConfigError(f"{name} {value} names no path")
        return
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"{name} {value!r} is neither HOST:PORT, port 0 to 65535, nor unix:PATH")
    if not anywhere and not _is_loopback(host):
        raise ConfigError(f"{name} {value} is not on loopback; without TLS only loopback and unix:PATH are allowed")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
