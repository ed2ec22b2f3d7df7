"""Bugs that are put in on purpose, to see that the checks can fail."""

from __future__ import annotations

PLANTED: dict[str, object] = {}
