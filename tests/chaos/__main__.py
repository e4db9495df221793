"""Runs a chaos scenario from the command line: `make chaos [MINUTES=60] [SCENARIO=tasks|twins|store|all]`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from . import tasks, twins

SCENARIOS = ("tasks", "twins", "store", "all")
_BUILT = ("tasks", "twins")


def main() -> int:
    """Run it; 0 if nothing happened that must not happen."""
    options = _options()
    if options.scenario not in _BUILT:
        print(f"scenario {options.scenario} is not built yet; there is: {', '.join(_BUILT)}", file=sys.stderr)
        return 2
    print(f"{options.scenario}: seed {options.seed}, at most {options.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(_run(options, folder))
    print(report)
    if report.is_good:
        shutil.rmtree(folder)
        print("PASSED")
        return 0
    again = f"make chaos SCENARIO={options.scenario} SEED={options.seed}"
    print(f"FAILED; what was recorded is in {folder}; again: {again}")
    return 1


async def _run(options: argparse.Namespace, folder: Path) -> tasks.Report | twins.Report:
    if options.scenario == "twins":
        return await twins.run(twins.Plan(options.seed, options.scripts, options.minutes), folder)
    plan = tasks.Plan(
        seed=options.seed,
        tasks=options.tasks,
        workers=options.workers,
        kills=options.kills,
        pauses=options.pauses,
        redis_kills=options.redis_kills,
        minutes=options.minutes,
    )
    return await tasks.run(plan, folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    plan = tasks.Plan(seed=0)
    parser.add_argument("--scenario", choices=SCENARIOS, default="tasks")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="the longest that it may take")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--scripts", type=int, default=twins.Plan(seed=0).scripts, help="of scenario twins")
    for name in ("tasks", "workers", "kills", "pauses", "redis_kills"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plan, name))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
