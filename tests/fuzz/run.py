"""Runs the property tests over many more random histories than the test suite, in rounds.

Each round uses a fresh stack and prints its seed. A failing round prints how to repeat it and ends the run.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROUND_STEPS = 5000
SEEDS_APART = 1000
"""More seeds than a round uses: each seed gives some hundred steps."""


def main() -> int:
    """Run rounds until there are enough steps or the time is over."""
    options = _options()
    began, done = time.monotonic(), 0
    for number in range(-(-options.steps // ROUND_STEPS)):
        if options.minutes and time.monotonic() - began > options.minutes * 60:
            print(f"stopped after {options.minutes:g} minutes: {done} of {options.steps} steps, no failure")
            return 0
        steps, seed = min(ROUND_STEPS, options.steps - done), options.seed + number * SEEDS_APART
        again = f"python tests/fuzz/run.py --steps {steps} --seed {seed}"
        print(f"round {number + 1}: {steps} steps from seed {seed}", flush=True)
        if _round(steps, seed):
            print(f"FAILED after {done} good steps; to repeat: {again}")
            return 1
        done += steps
    print(f"{done} steps or more agreed with the model, in {time.monotonic() - began:.0f} s")
    return 0


def _round(steps: int, seed: int) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "-m",
        "long",
        "tests/memories/test_properties.py",
    ]
    environment = {**os.environ, "FUZZ_STEPS": str(steps), "FUZZ_SEED": str(seed)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=int(os.environ.get("STEPS") or 50_000))
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 0), help="0: no limit")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or random.randrange(10**6, 10**9)))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
