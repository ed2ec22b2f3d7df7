"""``sgctl replay``: a capture file, judged packet by packet by the rules that a server has now."""

from __future__ import annotations

from secgroups.lab.replay.entry import command

__all__ = ["command"]
