"""The chaos scenario of memories: agents store, change, delete and search while faults strike the real stack.

A run is a sequence of epochs, each on a fresh machine, so that neither Redis nor the histories grow without limit.
Faults strike one after another; after each the load must succeed again. At the end of an epoch everything is healed,
all agents read back everything they stored, and the rules judge. Then the database is flushed, and a second part is
judged: nothing older may be seen, and everything new is kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from memory_core.records.keys import Keys

from . import history
from .evidence import Violation
from .history import Recorder
from .memories import final_reads, memory_records, rules
from .memories.clock import RedisClock
from .memories.evidence import Evidence
from .memories.faults import Faults
from .memories.load import NAMESPACE, Actor, Load
from .memories.machine import Machine, short_folder
from .progress import settle

_log = logging.getLogger(__name__)
AGENTS = ("alice", "bob", "carol", "dave")
RECOVERY_SECONDS = 45.0
"""Time limit for the first acknowledged write after a fault."""
_FLUSH = "database flushed"


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run. It ends at the time limit or after `ops` acknowledged writes, whichever comes first."""

    seed: int
    minutes: float = 60.0
    ops: int = 250_000
    per_epoch: int = 20_000
    agents: int = 4
    pause: float = 4.0
    """Average seconds between faults."""
    duration_factor: float = 1.0
    """Multiplies the duration of faults."""
    kinds: tuple[str, ...] = ()
    """Faults in this order, once. If empty, all kinds repeatedly in random order."""
    flush: bool = True
    sample: int = 120
    """Memories of an epoch that are searched at its end."""
    largest_batch: int = 80


@dataclass(slots=True)
class Report:
    """What a run did, and the broken rules."""

    plan: Plan
    epochs: int = 0
    seconds: float = 0.0
    acknowledged: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    slowest: tuple[float, str] = (0.0, "no fault")
    """The longest time from the end of a fault to the next acknowledged write, and that fault."""
    unsynced: int = 0
    violations: list[Violation] = field(default_factory=list[Violation])

    @property
    def is_good(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations

    def count(self, evidence: Evidence) -> None:
        """Add the operations of an epoch."""
        for op in evidence.ops:
            self.outcomes[f"{op.name} {op.outcome}"] += 1
            if op.is_ok and op.name in {"store_memory", "update_memory", "clear_memory"}:
                self.acknowledged[op.name] += 1

    def __str__(self) -> str:
        written = sum(self.acknowledged.values())
        found = Counter(violation.rule for violation in self.violations)
        lines = [
            f"seed {self.plan.seed}: {self.epochs} epochs, {self.seconds:.0f} s, {written} acknowledged writes "
            f"({_counts(self.acknowledged)})",
            f"faults: {sum(self.faults.values())} of {len(self.faults)} kinds: {_counts(self.faults)}",
            *(f"SKIPPED {name}: {why}" for name, why in sorted(self.skipped.items())),
            f"slowest recovery: {self.slowest[0]:.1f} s after {self.slowest[1]}",
            f"power losses removed {self.unsynced} unsynced bytes",
            f"calls: {_counts(self.outcomes)}",
            f"violations: {len(self.violations)} ({_counts(found)})",
            *(f"  {violation}" for violation in self.violations[:50]),
        ]
        return "\n".join(lines)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


async def run(plan: Plan, folder: Path) -> Report:
    """Run the scenario and judge it. Keeps histories and logs of epochs that broke a rule in the folder."""
    report, began = Report(plan), time.monotonic()
    ends = began + plan.minutes * 60
    while not report.epochs or (time.monotonic() < ends and sum(report.acknowledged.values()) < plan.ops):
        place = short_folder()
        known = len(report.violations)
        try:
            await _Epoch(plan, report, place, ends).run()
        finally:
            report.epochs += 1
            if len(report.violations) > known:
                shutil.copytree(place, folder / f"epoch{report.epochs}", ignore=shutil.ignore_patterns("*.sock"))
            shutil.rmtree(place, ignore_errors=True)
        if plan.kinds:
            break
    report.seconds = time.monotonic() - began
    return report


class _Epoch:
    """One machine and its run."""

    def __init__(self, plan: Plan, report: Report, folder: Path, ends: float) -> None:
        self.plan, self.report, self.folder, self.ends = plan, report, folder, ends
        self.seed = plan.seed * 1000 + report.epochs
        self.chance = random.Random(self.seed)
        self.keys = Keys(NAMESPACE)
        self.clock = RedisClock()

    async def run(self) -> None:
        """Run and judge, flush the database, then run and judge again."""
        async with Machine(self.folder).running() as machine:
            faults = Faults(machine, self.chance, self.clock, self.plan.duration_factor)
            report = self.report
            try:
                before = await self._part(machine, faults, 0, self.plan.per_epoch, frozenset())
                if self.plan.flush:
                    await machine.client.flushdb()
                    faults.struck[_FLUSH] += 1
                    ids = [one for one, life in before.lives.items() if life.stores]
                    forgotten = frozenset(self.chance.sample(ids, k=min(300, len(ids))))
                    await self._part(machine, None, 1, self.plan.per_epoch // 20, forgotten)
            finally:
                report.faults += faults.struck
                report.skipped |= faults.skipped
                report.unsynced += faults.unsynced

    async def _part(
        self, machine: Machine, faults: Faults | None, number: int, ops: int, forgotten: frozenset[str]
    ) -> Evidence:
        histories = self.folder / f"histories{number}"
        histories.mkdir()
        recorder = Recorder(histories, "agents")
        load = Load(ops, self.plan.largest_batch)
        names = AGENTS[: self.plan.agents]
        actors = [Actor(name, self.seed, recorder, load, machine.address, number) for name in names]
        working = [asyncio.create_task(actor.work()) for actor in actors]
        try:
            if faults is not None:
                await self._strike(faults, load, working)
            await asyncio.wait(working, timeout=max(self.ends - time.monotonic(), 20.0) if not self.plan.kinds else 30)
        finally:
            load.stopping.set()
            await asyncio.gather(*working, return_exceptions=True)
        return await self._judge(machine, recorder, histories, forgotten)

    async def _strike(self, faults: Faults, load: Load, working: list[asyncio.Task[None]]) -> None:
        """Apply faults one after another until the load is done. After each one the load must succeed again."""
        able = sorted(faults.kinds())
        left = [kind for kind in self.plan.kinds if kind in able]
        while not load.is_done and not all(task.done() for task in working):
            if not left:
                if self.plan.kinds:
                    break
                left = self.chance.sample(able, k=len(able))
            kind = left.pop(0)
            _log.info("%d acknowledged; %s", load.acknowledged, kind)
            await faults.strike(kind)
            healed = time.monotonic()
            recovers = await _recovers(load)
            self.report.slowest = max(self.report.slowest, (time.monotonic() - healed, kind))
            if not recovers:
                self.report.violations.append(Violation("did not recover", kind, f"within {RECOVERY_SECONDS:.0f} s"))
            if time.monotonic() > self.ends:
                load.stopping.set()
            await asyncio.sleep(self.chance.uniform(0, 2 * self.plan.pause))
        if self.plan.kinds:
            load.stopping.set()

    async def _judge(
        self, machine: Machine, recorder: Recorder, histories: Path, forgotten: frozenset[str]
    ) -> Evidence:
        _log.info("waiting until nothing is pending")

        async def unfinished() -> list[str]:
            return [*await machine.not_ready(), *await memory_records.unfinished(machine.client, self.keys)]

        left = await settle(unfinished)
        rested = time.monotonic()
        calls, _ = history.load(histories)
        _log.info("final reads, after %d calls", len(calls))
        try:
            await final_reads.read_everything(
                machine.address, recorder, calls, self.plan.sample, self.chance, sorted(forgotten)
            )
        except* final_reads.StillRefused as refused:
            self.report.violations.append(Violation("refused at rest", "all", str(refused.exceptions[0])))
        left = left or await settle(unfinished)
        _log.info("judging")
        calls, clock = history.load(histories)
        state = await memory_records.read(machine.client, self.keys, machine.keyring, left)
        self.clock.ahead = clock.most
        evidence = Evidence(calls, state, self.clock, rested, forgotten)
        found = rules.violations(evidence)
        for violation in found:
            _log.warning("%s", violation)
        self.report.violations += found
        self.report.count(evidence)
        return evidence


async def _recovers(load: Load) -> bool:
    """Whether something more is acknowledged in time."""
    before, deadline = load.acknowledged, time.monotonic() + RECOVERY_SECONDS
    while load.acknowledged <= before and not load.is_done:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
