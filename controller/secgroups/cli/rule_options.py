"""The options that spell a rule, for ``rule add`` and ``rule delete``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from secgroups.cli.drafts import (
    ANYWHERE,
    Remote,
    RuleDraft,
    parse_cidr,
    parse_octet,
    parse_ports,
    parse_protocol,
)
from secgroups.cli.errors import FieldError
from secgroups.cli.name_completion import complete_groups, complete_presets

Command = TypeVar("Command", bound=Callable[..., Any])

# What a key of a rule is called among the options.
_OPTIONS = {"ports": "--port", "remote": "--remote-ip", "icmp_type": "--icmp-type", "icmp_code": "--icmp-code"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWords:
    """A rule, or several, as options say it; nothing checked yet. ``direction`` is None where no option says it: ingress."""

    presets: tuple[str, ...] = ()
    direction: str | None = None
    protocol: str | None = None
    ports: tuple[str, ...] = ()
    icmp_type: str | None = None
    icmp_code: str | None = None
    remote_ips: tuple[str, ...] = ()
    remote_groups: tuple[str, ...] = ()
    remote_any: bool = False
    description: str = ""

    @property
    def spells_a_rule(self) -> bool:
        """True if any option was given."""
        return self != RuleWords()

    def remotes(self) -> list[Remote]:
        """Return the other sides. UsageError if none is said, or others beside anywhere."""
        named = [*self.remote_ips, *self.remote_groups]
        if self.remote_any and named:
            raise click.UsageError("--remote-any covers every address: leave --remote-ip and --remote-group out")
        if not named and not self.remote_any:
            raise click.UsageError("say who the other side is: --remote-ip, --remote-group or --remote-any")
        if self.remote_any:
            return [ANYWHERE]
        return [*(parse_cidr(text) for text in self.remote_ips), *(Remote("group", name) for name in self.remote_groups)]

    def drafts(self, presets: Callable[[str], Sequence[RuleDraft]]) -> list[RuleDraft]:
        """Return a rule for each port (or rule of a preset) and each remote; ``presets`` finds the rules of a preset.

        UsageError if something is missing, contradictory or no value.
        """
        if self.presets and (self.protocol or self.ports or self.icmp_type or self.icmp_code):
            raise click.UsageError("--preset says protocol and ports: leave the options for them out")
        if not self.presets and self.protocol is None:
            raise click.UsageError("say which --protocol: tcp, udp, icmp, any or a number; or take a --preset")
        if self.icmp_code is not None and self.icmp_type is None:
            raise click.UsageError("--icmp-code needs --icmp-type")
        try:
            remotes = self.remotes()
            return [draft for remote in remotes for draft in self._of_remote(remote, presets)]
        except FieldError as error:
            raise click.UsageError(f"{_OPTIONS.get(error.field, f'--{error.field}')}: {error.message}") from None

    def _of_remote(self, remote: Remote, presets: Callable[[str], Sequence[RuleDraft]]) -> Iterator[RuleDraft]:
        for name in self.presets:
            for draft in presets(name):
                yield RuleDraft(
                    direction=self.direction or "ingress",
                    protocol=draft.protocol,
                    ports=draft.ports,
                    icmp_type=draft.icmp_type,
                    icmp_code=draft.icmp_code,
                    remote=remote,
                    description=self.description or draft.description,
                )
        if self.protocol is None:
            return
        for ports in [parse_ports(text) for text in self.ports] or [None]:
            yield RuleDraft(
                direction=self.direction or "ingress",
                protocol=parse_protocol(self.protocol),
                ports=ports,
                icmp_type=None if self.icmp_type is None else parse_octet(self.icmp_type, "icmp_type"),
                icmp_code=None if self.icmp_code is None else parse_octet(self.icmp_code, "icmp_code"),
                remote=remote,
                description=self.description,
            )


def rule_options(command: Command) -> Command:
    """Add the options that spell rules; the command gets them as ``words``."""

    @click.option(
        "--preset",
        "presets",
        multiple=True,
        shell_complete=complete_presets,
        help="A named shorthand, for example ssh; see sgctl rule presets.",
    )
    @click.option("--ingress", is_flag=True, help="Towards the server (the default).")
    @click.option("--egress", is_flag=True, help="From the server.")
    @click.option("--protocol", metavar="tcp|udp|icmp|any|NUMBER")
    @click.option("--port", "ports", multiple=True, metavar="PORT[-PORT]", help="Destination port or range; repeatable. None: all.")
    @click.option("--icmp-type", metavar="N")
    @click.option("--icmp-code", metavar="N")
    @click.option("--remote-ip", "remote_ips", multiple=True, metavar="CIDR", help="Addresses of the other side; repeatable.")
    @click.option(
        "--remote-group",
        "remote_groups",
        multiple=True,
        metavar="GROUP",
        shell_complete=complete_groups,
        help="Servers of a group; repeatable.",
    )
    @click.option("--remote-any", is_flag=True, help="Anybody, IPv4 and IPv6.")
    @click.option("--description", default="", help="For people, at most 512 characters.")
    @functools.wraps(command)
    def with_words(*args: Any, ingress: bool, egress: bool, **kwargs: Any) -> Any:
        if ingress and egress:
            raise click.UsageError("--ingress and --egress contradict each other: a rule has one direction")
        kwargs["direction"] = "egress" if egress else "ingress" if ingress else None
        words = RuleWords(**{name: kwargs.pop(name) for name in RuleWords.__slots__})
        return command(*args, words=words, **kwargs)

    return with_words  # type: ignore[return-value]
