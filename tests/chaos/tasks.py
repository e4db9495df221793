"""The chaos scenario of tasks: a team works while its processes are killed and paused and Redis is cut off.

Faults are spread over the run by progress, so that a faster machine has as many. When all tasks are submitted or the
time is over, the team finishes what is open, for as long as it makes progress. Afterwards the checker compares the
histories of all processes with what Redis stores.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from redis.exceptions import RedisError
from support.embedder_fixtures import RedisServer
from support.ports import free_port

from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import connect

from . import checker, history, task_records
from .actors import LEASES, STOP, ProcessSpec
from .evidence import Evidence, Violation
from .processes import Processes
from .progress import PATIENCE, Patience, settle

_LAST_FAULT = 0.85
"""Share of tasks that have ended at the last fault."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run, and its number of faults. Submitters and faults stop at the time limit."""

    seed: int
    tasks: int = 10_000
    workers: int = 8
    submitters: int = 2
    kills: int = 50
    pauses: int = 30
    redis_kills: int = 3
    server_kills: int = 2
    minutes: float = 60.0
    patience: Patience = PATIENCE


@dataclass(slots=True)
class Report:
    """What a run did, and the broken rules."""

    plan: Plan
    faults: Counter[str] = field(default_factory=Counter[str])
    ends: Counter[str] = field(default_factory=Counter[str])
    calls: Counter[str] = field(default_factory=Counter[str])
    refusals: Counter[str] = field(default_factory=Counter[str])
    happened: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list[Violation])
    log: str = ""

    @property
    def double_completions(self) -> int:
        """How many tasks any source counts as completed more than once."""
        return sum(violation.rule == "completed twice" for violation in self.violations)

    @property
    def is_good(self) -> bool:
        """Whether no rule was broken."""
        return not self.violations and not self.log

    def __str__(self) -> str:
        total = sum(self.ends.values())
        lines = [
            f"seed {self.plan.seed}: {total} tasks, {self.plan.workers} workers, {self.seconds:.0f} s, "
            f"{total / self.seconds:.0f} tasks/s",
            f"faults: {_counts(self.faults)}",
            f"ends: {_counts(self.ends)}",
            f"happened: {_counts(self.happened)}",
            f"calls: {_counts(self.calls)}",
            f"refusals: {_counts(self.refusals)}",
            f"double completions: {self.double_completions}",
            f"violations: {len(self.violations)}",
            *(f"  {violation}" for violation in self.violations[:50]),
        ]
        return "\n".join([*lines, *(["output of the processes:", self.log[-4000:]] if self.log else [])])


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


async def run(plan: Plan, folder: Path) -> Report:
    """Run the scenario on a separate Redis and judge it."""
    redis = RedisServer(folder)
    redis.start()
    began = time.monotonic()
    try:
        async with connect(redis.url) as client:
            the_run = Run(plan, folder, redis, client)
            async with the_run.running():
                left = await the_run.until_all_ended()
            seconds = time.monotonic() - began
            return await _judge(the_run, seconds, left)
    finally:
        redis.kill()


class Run:
    """The processes of one run and their faults."""

    def __init__(self, plan: Plan, folder: Path, redis: RedisServer, client: Client) -> None:
        self.plan, self.folder, self.redis, self.client = plan, folder, redis, client
        self.keys = Keys("chaos")
        self.faults: Counter[str] = Counter()
        self.log = folder / "processes.log"
        self._random = random.Random(plan.seed)
        self._deadline = time.monotonic() + plan.minutes * 60
        self._histories = folder / "histories"
        self._histories.mkdir()
        self._parts: dict[str, ProcessSpec] = {}
        self._paused: set[str] = set()
        self._processes = Processes(self.log)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run all processes and faults within the block."""
        for part in self._specs():
            self._parts[part.name] = part
            self._processes.start(part)
        self._faults = asyncio.create_task(self._apply_faults())
        try:
            yield
        finally:
            self._faults.cancel()
            await asyncio.gather(self._faults, return_exceptions=True)
            self._processes.end()

    async def until_all_ended(self) -> list[str]:
        """Apply the faults, then wait until all tasks have ended; return what is left when progress ends."""
        await self._faults
        while time.monotonic() < self._deadline and self._submitting():
            await asyncio.sleep(0.1)
        (self._histories / STOP).touch()
        return await settle(self._unfinished, self.plan.patience)

    def _submitting(self) -> int:
        """How many submitters are at work."""
        done = [self._histories / f"s{number}.done" for number in range(self.plan.submitters)]
        return sum(not path.exists() for path in done)

    async def _unfinished(self) -> list[str]:
        """Describe the tasks that have not ended. Offers are no progress: a task may be offered forever."""
        submitting, still_open = self._submitting(), int(await self.client.hget(self.keys.counters, "open_tasks") or 0)
        if not submitting and not still_open:
            return []
        leased, retrying = await self.client.zcard(self.keys.leases), await self.client.zcard(self.keys.delayed)
        tasks = f"{await self._ended()} tasks have ended, {still_open} are open, {leased} leased, {retrying} retrying"
        return [tasks, *([f"{submitting} submitters are at work"] if submitting else [])]

    def evidence_folder(self) -> Path:
        """The folder of the histories."""
        return self._histories

    def _specs(self) -> list[ProcessSpec]:
        port = free_port()
        base = ProcessSpec("server", "server", 0, self.plan.seed, self.redis.url, str(self._histories), port=port)
        specs = [base]
        for number in range(self.plan.workers):
            able = ["even" if number % 2 == 0 else "odd", *(["rare"] if number < 3 else [])]
            remote = f"http://127.0.0.1:{port}" if number == 0 else ""
            window = 200_000 if number % 3 == 0 else 0
            part = replace(base, role="worker", name=f"w{number}", address=remote, capabilities=able, window=window)
            specs.append(part)
        share = self.plan.tasks // self.plan.submitters
        for number in range(self.plan.submitters):
            part = replace(base, role="submitter", name=f"s{number}", tasks=share, workers=self.plan.workers)
            specs.append(part)
        return specs

    async def _apply_faults(self) -> None:
        plan = self.plan
        faults = [self._kill_worker] * plan.kills + [self._pause_worker] * plan.pauses
        faults += [self._kill_redis] * plan.redis_kills + [self._kill_server] * plan.server_kills
        self._random.shuffle(faults)
        step = _LAST_FAULT * plan.tasks / max(len(faults), 1)
        async with asyncio.TaskGroup() as pauses:
            for number, fault in enumerate(faults):
                while await self._ended() < step * (number + self._random.random()):
                    if time.monotonic() > self._deadline:
                        return
                    await asyncio.sleep(0.02)
                if fault == self._pause_worker:
                    pauses.create_task(fault())
                else:
                    await fault()

    async def _kill_worker(self) -> None:
        name = self._random.choice([name for name in self._parts if name[0] == "w" and name not in self._paused])
        self._restart(name)
        self.faults["worker kills"] += 1

    async def _kill_server(self) -> None:
        self._restart("server")
        self.faults["server kills"] += 1

    def _restart(self, name: str) -> None:
        self._processes.kill(name)
        self._parts[name] = replace(self._parts[name], life=self._parts[name].life + 1)
        self._processes.start(self._parts[name])

    async def _pause_worker(self) -> None:
        """Pause a worker for longer than its leases. At least two keep working."""
        while len(self._paused) > self.plan.workers - 2:
            await asyncio.sleep(0.05)
        name = self._random.choice([name for name in self._parts if name[0] == "w" and name not in self._paused])
        self._paused.add(name)
        self._processes.pause(name)
        await asyncio.sleep(LEASES[1] + self._random.uniform(0.1, 1.0))
        self._processes.resume(name)
        self._paused.discard(name)
        self.faults["pauses"] += 1

    async def _kill_redis(self) -> None:
        self.redis.kill()
        await asyncio.sleep(self._random.uniform(0, 0.5))
        await asyncio.to_thread(self.redis.start)
        self.faults["Redis kills"] += 1

    async def _ended(self) -> int:
        return sum([await self._counter(f"tasks_{state}") for state in ("completed", "dead", "cancelled")])

    async def _counter(self, name: str) -> int:
        try:
            return int(await self.client.hget(self.keys.counters, name) or 0)
        except (RedisError, OSError):
            return 0


async def _judge(the_run: Run, seconds: float, left: list[str]) -> Report:
    calls, clock = history.load(the_run.evidence_folder())
    workers = [f"w{number}" for number in range(the_run.plan.workers)]
    evidence = Evidence(
        calls,
        await task_records.read_tasks(the_run.client, the_run.keys),
        await task_records.read_audit(the_run.client, the_run.keys),
        clock,
        await task_records.read_leftovers(the_run.client, the_run.keys, workers),
    )
    happened = Counter(entry.op for task in evidence.tasks.values() for entry in task.entries)
    happened["renewed"] = sum(effect.op == "renew" for effect in evidence.effects)
    return Report(
        the_run.plan,
        the_run.faults,
        Counter(task.state for task in evidence.tasks.values()),
        Counter(f"{call.op} {call.outcome}" for call in calls),
        Counter(f"{call.op} {call.answer['code']}" for call in calls if "code" in call.answer),
        happened,
        seconds,
        [*(Violation("not at rest", "all", what) for what in left), *checker.violations(evidence)],
        the_run.log.read_text(errors="replace"),
    )
