"""Runs seeds: ``simulate.py SEED``, ``FIRST..LAST``, or ``--serve`` to take seeds from standard input, one a line, and answer each.

A seed is a whole run and a function of its number alone; one that failed is shown step by step with ``--show``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# The order of sets is part of a run.
HASH_SEED = "0"
# How often a long run says how far it is.
PROGRESS_EVERY = 500

if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": HASH_SEED})

from plan import plan_of  # noqa: E402
from planted import PLANTED  # noqa: E402
from world import FailedError, World  # noqa: E402


def run(seed: int, *, shown: bool = False, planted: str = "") -> dict[str, object]:
    """Run a seed; return what came of it."""
    bug = PLANTED.get(planted)
    folder = Path(tempfile.mkdtemp(prefix=f"simulation-{seed}-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    began_s = time.perf_counter()
    gc.disable()
    try:
        world = World(
            bug.plan_of(seed) if bug else plan_of(seed),
            folder,
            shown=shown,
            ignored=bug.ignored if bug else frozenset(),
            mutate=bug.mutate if bug else None,
        )
        failed = check = ""
        try:
            world.run()
        except FailedError as error:
            failed, check = str(error), error.check
    finally:
        gc.enable()
        shutil.rmtree(folder, ignore_errors=True)
    answer = {
        "seed": seed,
        "failed": failed,
        "check": check,
        "hash": world.trace_hash,
        "virtual_s": round(world.loop.time() - 1_000, 1),
        "real_s": round(time.perf_counter() - began_s, 3),
        "counts": dict(sorted(world.counts.items())),
    }
    del world
    gc.collect()
    return answer


def serve() -> None:
    """Take a seed, and the name of a planted bug or nothing, from each line; answer each in a line of JSON."""
    for line in sys.stdin:
        seed, _, planted = line.strip().partition(" ")
        print(json.dumps(run(int(seed), planted=planted)), flush=True)


def main() -> int:
    """Run what the command line asks for; 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="scripts/test --simulate", description=__doc__)
    parser.add_argument("seeds", nargs="?", default="", help="SEED, or FIRST..LAST")
    parser.add_argument("--show", action="store_true", help="print every step")
    parser.add_argument("--serve", action="store_true", help="take seeds from standard input")
    parser.add_argument("--planted", default="", choices=["", *PLANTED], help="run with this bug")
    arguments = parser.parse_args()
    # What was imported stays: no need to look at it between seeds.
    gc.collect()
    gc.freeze()
    if arguments.serve:
        serve()
        return 0
    first, _, last = arguments.seeds.partition("..")
    failures = 0
    counts: Counter[str] = Counter()
    began_s = time.perf_counter()
    seeds = range(int(first), int(last or first) + 1)
    for seed in seeds:
        answer = run(seed, shown=arguments.show, planted=arguments.planted)
        counts.update(answer["counts"])  # type: ignore[arg-type]
        if answer["failed"]:
            failures += 1
            print(f"seed {seed} FAILED: {answer['failed']}", flush=True)
        if (seed - seeds.start + 1) % PROGRESS_EVERY == 0:
            print(f"{seed - seeds.start + 1} of {len(seeds)} seeds, {failures} failed", file=sys.stderr, flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:9} {name}")
    took_s = time.perf_counter() - began_s
    print(f"{len(seeds)} seeds, {failures} failed, {took_s:.1f} s" + (f", trace {answer['hash']}" if len(seeds) == 1 else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
