"""Tests of replay judge packets that were really recorded: tests/captures, made by scripts/record_captures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
