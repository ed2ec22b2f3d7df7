"""The choice between the engines, which is the same for every command that judges packets."""

from __future__ import annotations

import click

ENGINE_NAMES = ("compiled", "reference")
DEFAULT_ENGINE = "compiled"

engine_option = click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    default=DEFAULT_ENGINE,
    show_default=True,
    help="Which engine judges: the one that agents run, or its slow and plain twin. Both say the same.",
)
