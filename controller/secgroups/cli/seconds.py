"""A number of seconds as an option."""

from __future__ import annotations

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """From 0 to ``seconds_max``, 0 itself only without ``min_open``. Unlike click's own range it refuses nan."""

    def __init__(self, seconds_max: float, *, min_open: bool = False) -> None:
        super().__init__(0, seconds_max, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; ``fail`` if it is none or out of range."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return number
