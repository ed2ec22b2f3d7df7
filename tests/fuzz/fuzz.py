"""Fuzz one target: ``scripts/test --fuzz TARGET [--runs N]``.

With Atheris (``pip install atheris``) inputs are led by what they reach, without it they vary by chance. An input that breaks the
target is written to ``tests/fuzz/findings`` and is a test from then on: mend what it found and keep it, named for what it was.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import structlog
from mutation import INPUT_BYTES_MAX, FoundError, explore
from targets import FINDINGS, TARGETS, findings, load

RUNS = 100_000
# An input that takes longer, or more memory, is a finding.
INPUT_S, MEMORY_MB = 20, 2_048


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 if nothing was found."""
    listed = "\n".join(f"  {name:12}{what}" for name, what in TARGETS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"targets:\n{listed}"
    )
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"how many inputs ({RUNS:,})")
    parser.add_argument("--seed", type=int, default=1, help="what they follow from, not 0")
    has_atheris = importlib.util.find_spec("atheris") is not None
    engines = ("atheris", "chance")
    parser.add_argument("--engine", choices=engines, default=engines[not has_atheris], help="Atheris if it is installed")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    FINDINGS.mkdir(exist_ok=True)
    if options.engine == "atheris":
        _guided(options.target, options.runs, options.seed)
    return _by_chance(options.target, options.runs, options.seed)


def _by_chance(name: str, runs: int, seed: int) -> int:
    target = load(name)
    begun_s = time.monotonic()
    try:
        explore(target.run, _corpus(name, target.SEEDS), target.WORDS, runs=runs, seed=seed, prefix=FINDINGS / name)
    except FoundError as error:
        traceback.print_exception(error)
        return 1
    print(f"{name}: {runs} runs from seed {seed}, nothing found; {time.monotonic() - begun_s:.0f} s")
    return 0


def _guided(name: str, runs: int, seed: int) -> None:
    """Never returns: libFuzzer ends the process, with its own status."""
    import atheris

    with atheris.instrument_imports(include=["secgroups"], enable_loader_override=False):
        target = load(name)
    # Not removed, as nothing comes after the end.
    work = Path(tempfile.mkdtemp(prefix=f"secgroups-fuzz-{name}-"))
    corpus, words = work / "corpus", work / "words"
    corpus.mkdir()
    for number, content in enumerate(_corpus(name, target.SEEDS)):
        (corpus / str(number)).write_bytes(content)
    words.write_text("".join(map(_dictionary_entry, target.WORDS)))
    flags = {
        "runs": runs,
        "seed": seed,
        "dict": words,
        "max_len": INPUT_BYTES_MAX,
        "timeout": INPUT_S,
        "rss_limit_mb": MEMORY_MB,
        "artifact_prefix": f"{FINDINGS / name}-",
        "print_final_stats": 1,
    }
    atheris.Setup([sys.argv[0], *(f"-{flag}={value}" for flag, value in flags.items()), str(corpus)], target.run)
    atheris.Fuzz()


def _dictionary_entry(word: bytes) -> str:
    escaped = "".join(f"\\x{byte:02x}" for byte in word)
    return f'"{escaped}"\n'


def _corpus(name: str, seeds: Sequence[bytes]) -> list[bytes]:
    return [*seeds, *(file.read_bytes() for file in findings(name))]


if __name__ == "__main__":
    sys.exit(main())
