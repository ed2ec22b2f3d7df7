"""Varies inputs by chance: for machines without a coverage-guided fuzzer, and what Hypothesis begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

INPUT_BYTES_MAX = 4_096
_CHANGES = (0, 1, 1, 2, 4, 8)


def mutated(chance: Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return a seed, or nothing but noise, after some changes."""
    data = bytearray(chance.choice(seeds) if seeds and chance.random() < 0.8 else chance.randbytes(chance.randrange(400)))
    for _ in range(chance.choice(_CHANGES)):
        _change(chance, data, seeds, words)
    return bytes(data[:INPUT_BYTES_MAX])


def _change(chance: Random, data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
    match chance.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            data[at:end] = chance.randbytes(end - at)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end]
        case 4 if words:
            data[at : at if chance.random() < 0.5 else end] = chance.choice(words)
        case 5 if seeds:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        case _:
            data[at:end] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - at)


class FoundError(Exception):
    """An input that the target can't take; ``file`` holds it."""

    def __init__(self, file: Path, run: int) -> None:
        super().__init__(f"run {run} found {file}")
        self.file = file


def explore(
    run: Callable[[bytes], None], seeds: Sequence[bytes], words: Sequence[bytes], *, runs: int, seed: int, prefix: Path
) -> None:
    """Run ``runs`` inputs that follow from ``seed``. FoundError with the first that raised, in a file named ``prefix``-HASH."""
    chance = Random(seed)
    for number in range(runs):
        data = seeds[number] if number < len(seeds) else mutated(chance, seeds, words)
        try:
            run(data)
        except Exception as error:
            file = prefix.with_name(f"{prefix.name}-{sha256(data).hexdigest()[:16]}")
            file.write_bytes(data)
            raise FoundError(file, number) from error
