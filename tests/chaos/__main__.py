"""Runs a chaos scenario from the command line: `make chaos [MINUTES=60] [SCENARIO=tasks|twins|store|power|all]`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from . import power_loss, store, tasks, twins


class Report(Protocol):
    """The result of a scenario. Its text is for people."""

    @property
    def is_good(self) -> bool:
        """Whether no rule was broken."""
        ...


def main() -> int:
    """Run the scenarios; return 0 if no rule was broken."""
    options = _options()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    names = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    options.minutes /= len(names)
    return max([_run(name, options) for name in names])


def _run(name: str, options: argparse.Namespace) -> int:
    print(f"{name}: seed {options.seed}, at most {options.minutes:g} minutes", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = asyncio.run(_go(name, options, folder))
    print(report)
    if report.is_good:
        shutil.rmtree(folder)
        print("PASSED")
        return 0
    again = f"make chaos SCENARIO={name} SEED={options.seed} MINUTES={options.minutes:g}"
    print(f"FAILED; the recorded histories are in {folder}; to repeat: {again}")
    return 1


async def _go(name: str, options: argparse.Namespace, folder: Path) -> Report:
    """Run a scenario. On SIGTERM it stops all its processes and unmounts its disks."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await SCENARIOS[name](options, folder)


def _tasks(options: argparse.Namespace, folder: Path) -> Awaitable[Report]:
    plan = tasks.Plan(
        seed=options.seed,
        tasks=options.tasks,
        workers=options.workers,
        kills=options.kills,
        pauses=options.pauses,
        redis_kills=options.redis_kills,
        minutes=options.minutes,
    )
    return tasks.run(plan, folder)


def _twins(options: argparse.Namespace, folder: Path) -> Awaitable[Report]:
    return twins.run(twins.Plan(options.seed, options.scripts, options.minutes), folder)


def _store(options: argparse.Namespace, folder: Path) -> Awaitable[Report]:
    kinds = tuple(filter(None, options.faults.split(",")))
    return store.run(store.Plan(options.seed, options.minutes, options.ops, kinds=kinds), folder)


def _power(options: argparse.Namespace, folder: Path) -> Awaitable[Report]:
    return power_loss.run(power_loss.Plan(options.seed, options.cuts, minutes=options.minutes), folder)


SCENARIOS: dict[str, Callable[[argparse.Namespace, Path], Awaitable[Report]]] = {
    "tasks": _tasks,
    "twins": _twins,
    "store": _store,
    "power": _power,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    plan = tasks.Plan(seed=0)
    parser.add_argument("--scenario", choices=(*SCENARIOS, "all"), default="tasks")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="time limit")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--scripts", type=int, default=twins.Plan(seed=0).scripts, help="scripts of scenario twins")
    parser.add_argument("--ops", type=int, default=store.Plan(seed=0).ops, help="acknowledged writes of scenario store")
    parser.add_argument("--faults", default="", help="kinds of faults of scenario store, in order, separated by commas")
    parser.add_argument("--cuts", type=int, default=power_loss.Plan(seed=0).cuts, help="power losses per level")
    for name in ("tasks", "workers", "kills", "pauses", "redis_kills"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(plan, name))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
