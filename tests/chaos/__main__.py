"""Runs a chaos scenario from the command line: `make chaos [MINUTES=60] [SCENARIO=tasks|store|all]`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from . import tasks

SCENARIOS = ("tasks", "store", "all")
_BUILT = ("tasks",)


def main() -> int:
    """Run it; 0 if nothing happened that must not happen."""
    options = _options()
    if options.scenario not in _BUILT:
        print(f"scenario {options.scenario} is not built yet; there is: {', '.join(_BUILT)}", file=sys.stderr)
        return 2
    plan = tasks.Plan(
        seed=options.seed,
        tasks=options.tasks,
        workers=options.workers,
        kills=options.kills,
        pauses=options.pauses,
        redis_kills=options.redis_kills,
        minutes=options.minutes,
    )
    print(f"tasks: seed {plan.seed}, at most {plan.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(tasks.run(plan, folder))
    print(report)
    if report.is_good:
        shutil.rmtree(folder)
        print("PASSED")
        return 0
    print(f"FAILED; the histories are in {folder}; again: make chaos SCENARIO=tasks SEED={plan.seed}")
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    plan = tasks.Plan(seed=0)
    parser.add_argument("--scenario", choices=SCENARIOS, default="tasks")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="the longest that it may take")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name in ("tasks", "workers", "kills", "pauses", "redis_kills"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plan, name))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
