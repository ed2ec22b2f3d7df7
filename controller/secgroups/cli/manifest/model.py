"""What a file says, checked and in canonical words. None means that the file does not say: it stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secgroups.cli.drafts import RuleDraft


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """A group that shall be; with ``rules`` exactly these. ``where`` is FILE:LINE."""

    name: str
    description: str | None = None
    rules: tuple[RuleDraft, ...] | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEntry:
    """A server that shall be; with ``groups`` attached to exactly these. Needs ``addresses`` only if it has to be created."""

    id: str
    name: str | None = None
    addresses: tuple[str, ...] | None = None
    agent: str | None = None
    groups: tuple[str, ...] | None = None
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole file, by name and id. A section that is not in the file is None: --prune then leaves such objects alone."""

    project: str | None = None
    groups: Mapping[str, GroupEntry] | None = None
    servers: Mapping[str, ServerEntry] | None = None
    source: str = field(default="", compare=False)
