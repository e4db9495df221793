"""Runs thousands of random scripts of one agent, with and without private data of other agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from support.in_process import InProcess
from support.stack import Stack, whole_stack
from support.twins import SCRIPTS_OF_A_PAIR, SETTINGS, Difference, compare, embedded

from memory_core.records.keys import NAMESPACES, Keys, vector_field
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_server.engine.sidecars.vector_cache import Vectors

LENGTH = 12
"""Calls in one script."""
_WORKERS = 2
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of scripts, the first seed and the time limit."""

    seed: int
    scripts: int = 10_000
    minutes: float = 60.0


@dataclass(slots=True)
class Report:
    """The scripts compared and the differences found."""

    plan: Plan
    scripts: int = 0
    seconds: float = 0.0
    differences: list[Difference] = field(default_factory=list[Difference])

    @property
    def is_good(self) -> bool:
        """Whether no answer revealed private data."""
        return not self.differences

    def __str__(self) -> str:
        rate = 60 * self.scripts / self.seconds if self.seconds else 0.0
        lines = [
            f"seed {self.plan.seed}: {self.scripts} scripts of {LENGTH} calls in two worlds, {self.seconds:.0f} s, "
            f"{rate:.0f} a minute; {len(self.differences)} differ"
        ]
        return "\n".join([*lines, *map(str, self.differences[:_SHOWN])])


async def run(plan: Plan, folder: Path) -> Report:
    """Compare scripts until there are enough, time is up, or one differs."""
    report, began = Report(plan), time.monotonic()
    pairs = count()
    async with AsyncExitStack() as opened:
        stack = await opened.enter_async_context(whole_stack(folder, **SETTINGS))
        await stack.client.config_set("appendfsync", "no")
        place = InProcess.over(stack.server)
        vectors = await embedded(place)

        def is_over() -> bool:
            late = time.monotonic() - began > plan.minutes * 60
            return late or bool(report.differences) or report.scripts >= plan.scripts

        async def work() -> None:
            while not is_over():
                await _pair(stack, place, vectors, next(pairs), report)

        await asyncio.gather(*(work() for _ in range(_WORKERS)))
    report.seconds = time.monotonic() - began
    return report


async def _pair(stack: Stack, place: InProcess, vectors: Vectors, number: int, report: Report) -> None:
    """Run the scripts of one pair of namespaces, then remove the pair."""
    pair = f"twins-{number}"
    for seed in _seeds(report.plan, number):
        difference = await compare(place, pair, seed, LENGTH, vectors)
        report.scripts += 1
        if difference:
            report.differences.append(difference)
            return
    if number % 20 == 0:
        print(f"{report.scripts} scripts compared", flush=True)
    for twin in ("m", "s"):
        await _remove(stack, f"{pair}-{twin}")


def _seeds(plan: Plan, number: int) -> Iterator[int]:
    first = plan.seed + number * SCRIPTS_OF_A_PAIR
    yield from range(first, first + SCRIPTS_OF_A_PAIR)


async def _remove(stack: Stack, namespace: str) -> None:
    """Remove a namespace, so that thousands of them fit into memory."""
    keys, client = Keys(namespace), stack.client
    await client.srem(NAMESPACES, namespace)
    for index in (keys.index(), keys.task_index(vector_field(DEFAULT_MODEL))):
        await client.execute_command("FT.DROPINDEX", index)
    names = [name async for name in client.scan_iter(match=f"{keys.prefix}*", count=10_000)]
    for start in range(0, len(names), 1000):
        await client.unlink(*names[start : start + 1000])
