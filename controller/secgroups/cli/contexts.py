"""Contexts: controllers by name, each with its address, what it is checked by, and the token to send.

Kept in one TOML file, readable by its owner alone: ``$XDG_CONFIG_HOME/secgroups/config.toml``, or the file that
``SECGROUPS_CONFIG`` names. Tokens stand in it, so they are in no process list and no history of a shell.
"""

from __future__ import annotations

import json
import os
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from secgroups.cli.errors import CliError, NotFoundError

CONTEXTS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One controller. ``ca`` is PEM, or "system" for what this host trusts; empty fields are not known."""

    address: str
    ca: str = ""
    token: str = ""
    project: str = ""


@dataclass(slots=True)
class Contexts:
    """All contexts, and which of them is used unless another is named."""

    current: str = ""
    by_name: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """Return a context. NotFoundError."""
        found = self.by_name.get(name)
        if found is None:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise NotFoundError(f"there is no context {name}; known are {known}")
        return found


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where contexts are kept."""
    if named := environment.get("SECGROUPS_CONFIG"):
        return Path(named)
    home = environment.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "secgroups" / "config.toml"


def read_contexts(path: Path) -> Contexts:
    """Return what is kept, nothing if there is no file. CliError if it can't be read."""
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise CliError(f"{path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{path} is no TOML: {error}") from None
    contexts = found.get("contexts", {})
    if not isinstance(contexts, dict):
        raise CliError(f"{path}: contexts is no table")
    known = {each.name for each in fields(Context)}
    made = {}
    for name, values in contexts.items():
        if not isinstance(values, dict) or not values.get("address") or not all(isinstance(text, str) for text in values.values()):
            raise CliError(f"{path}: context {name} has no address, or what is no text")
        made[name] = Context(**{key: text for key, text in values.items() if key in known})
    return Contexts(current=str(found.get("current", "")), by_name=made)


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Keep contexts, all at once. CliError if that can't be, or there are too many."""
    if len(contexts.by_name) > CONTEXTS_MAX:
        raise CliError(f"{len(contexts.by_name)} contexts are kept, the most allowed is {CONTEXTS_MAX}; remove some")
    lines = [f"current = {_text(contexts.current)}\n"]
    for name, context in sorted(contexts.by_name.items()):
        lines.append(f"\n[contexts.{_text(name)}]\n")
        lines += [f"{key} = {_text(value)}\n" for key, value in asdict(context).items() if value]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, "".join(lines))


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, all at once. OSError if that can't be."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    # The folder may be open to others: nobody may have put something there before, to read from it what is written.
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _text(value: Any) -> str:
    # JSON's strings are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
