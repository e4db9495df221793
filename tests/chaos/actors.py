"""The agents of a task run: workers that complete, fail, abandon and misuse tasks, and submitters.

All randomness comes from the run's seed and the process name. Each call is recorded before it is made.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_core.records.times import parse_time

from .evidence import LEASING
from .history import Json, Recorder, Refusal
from .tool_clients import ToolClient, direct, remote, serve

HEARTBEAT_SECONDS = 0.5
MOST_TASKS = 4
LEASES = (1.0, 2.0)
LONG_LEASE = 6.0
STOP = "stop"
"""Submitters submit nothing more once their folder has a file of this name."""
_CLAIM_WAIT = 0.3
_PATIENCE = 20
"""After this many consecutive calls without an answer the server counts as gone."""
_DEMANDS: list[tuple[list[str], int]] = [([], 0), ([], 0), (["even"], 0), (["odd"], 0), (["rare"], 0), ([], 100_000)]
"""Capabilities and context windows that tasks require. Some worker satisfies each."""
_UNCLEAR = {"outcome_unknown", "store_full", "store_unavailable"}


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What one process does. `address` is its server; without one it runs its own service."""

    role: str
    name: str
    life: int
    seed: int
    redis_url: str
    folder: str
    namespace: str = "chaos"
    address: str = ""
    port: int = 0
    capabilities: list[str] = field(default_factory=list[str])
    window: int = 0
    tasks: int = 0
    workers: int = 0

    @property
    def process(self) -> str:
        """The name of this life of the process in histories."""
        return f"{self.name}.{self.life}"

    @property
    def random(self) -> random.Random:
        """The random generator of this life of the process."""
        return random.Random(f"{self.seed} {self.process}")


async def run_process(spec: ProcessSpec) -> None:
    """Do the work of a process until it is done or killed."""
    if spec.role == "server":
        await serve(spec.redis_url, spec.port)
    elif spec.address:
        await _run_remotely(spec)
    else:
        async with direct(spec.redis_url, spec.namespace) as tools:
            await _perform(spec, tools)


async def _run_remotely(spec: ProcessSpec) -> None:
    """Reconnect whenever the server dies."""
    while True:
        with suppress(Exception):
            async with remote(spec.address, spec.namespace, spec.name) as tools:
                await _perform(spec, tools)
        await asyncio.sleep(0.2)


async def _perform(spec: ProcessSpec, tools: ToolClient) -> None:
    if spec.role == "worker":
        await Worker(spec, tools).work()
    else:
        await Submitter(spec, tools).submit_all()


class Worker:
    """Claims tasks and handles them well or badly."""

    def __init__(self, spec: ProcessSpec, tools: ToolClient) -> None:
        self._spec, self._tools, self._random = spec, tools, spec.random
        self._recorder = Recorder(Path(spec.folder), f"{spec.process}.{time.monotonic_ns()}")
        self._held: dict[str, str] = {}
        self._old: list[tuple[str, str]] = []
        self._failures = 0

    async def work(self) -> None:
        """Work until the server seems gone."""
        resumed = await self._register()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_heartbeats())
            for lease in resumed:
                group.create_task(self._handle(lease))
            while self._failures < _PATIENCE:
                for lease in await self._claim():
                    group.create_task(self._handle(lease))
                while len(self._held) >= MOST_TASKS:
                    await asyncio.sleep(0.02)
            raise ConnectionError("the server is gone")

    async def _call(self, op: str, tool: str, **arguments: Any) -> Json | None:
        """Make a call; return None if it was refused or its outcome is unknown."""

        async def act() -> Json:
            return _trimmed(op, await self._tools(tool, self._spec.name, **arguments))

        try:
            answer = await self._recorder.call(op, self._spec.name, arguments, act)
        except Refusal as refusal:
            self._failures = self._failures + 1 if refusal.code == "outcome_unknown" else 0
            return None
        self._failures = 0
        return answer

    async def _register(self) -> list[Json]:
        """Register, and return the leases of this worker's last life."""
        while not (
            answer := await self._call(
                "register",
                "register_agent",
                capabilities=self._spec.capabilities,
                context_window=self._spec.window,
                max_tasks=MOST_TASKS,
                heartbeat_seconds=HEARTBEAT_SECONDS,
            )
        ):
            await asyncio.sleep(0.1)
        self._held |= {task["task_id"]: task["lease_token"] for task in answer["tasks"]}
        return answer["tasks"]

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS * self._random.uniform(0.4, 0.9))
            await self._call("heartbeat", "update_agent_heartbeat", lease_tokens=list(self._held.values()))

    async def _claim(self) -> list[Json]:
        limit = self._random.randint(1, MOST_TASKS)
        answer = await self._call("claim", "get_pending_tasks", limit=limit, wait_seconds=_CLAIM_WAIT, with_memories=0)
        if answer is None:
            await asyncio.sleep(0.05)
        tasks = answer["tasks"] if answer else []
        if answer and not tasks:  # what this session abandoned: its calls renew those leases for hours
            tasks = [held for held in answer["held"] if held["task_id"] not in self._held]
        self._held |= {task["task_id"]: task["lease_token"] for task in tasks}
        return tasks

    async def _handle(self, lease: Json) -> None:
        """Complete most tasks; fail, abandon or overstay some, and try invalid tokens."""
        task_id, token, fate = lease["task_id"], lease["lease_token"], self._random.random()
        await asyncio.sleep(self._random.uniform(0, 0.02) if fate < 0.95 else self._random.uniform(0.2, 2.5))
        if self._random.random() < 0.03:
            await self._call("complete", "complete_task", task_id=task_id, lease_token=self._forge(token))
        if fate < 0.03:
            self._held.pop(task_id)
            await self._overstay(lease)
        if 0.02 < fate < 0.09:
            await self._fail(task_id, token, retry=fate > 0.03)
        elif fate > 0.005:
            await self._call("complete", "complete_task", task_id=task_id, lease_token=token)
        self._held.pop(task_id, None)
        self._old.append((task_id, token))
        if self._random.random() < 0.05:
            await self._misuse()

    async def _overstay(self, lease: Json) -> None:
        """Wait until the lease has just expired, or much longer."""
        just = max(parse_time(lease["lease_until"], "lease_until") - time.time(), 0.0) + 0.003
        await asyncio.sleep(self._random.choice([just, self._random.uniform(*LEASES)]))

    def _forge(self, token: str) -> str:
        """A token that was never issued."""
        head, fence, secret = token.split(".")
        return self._random.choice([f"{head}.{int(fence) + 1}.{secret}", f"{head}.{fence}.{secret[::-1]}"])

    async def _fail(self, task_id: str, token: str, *, retry: bool = True) -> None:
        await self._call("fail", "fail_task", task_id=task_id, lease_token=token, error="it did not work", retry=retry)

    async def _misuse(self) -> None:
        """Present an old or forged token."""
        task_id, token = self._random.choice(self._old[-20:])
        if self._random.random() < 0.3:
            token = self._forge(token)
        match self._random.randrange(3):
            case 0:
                await self._call("complete", "complete_task", task_id=task_id, lease_token=token)
            case 1:
                await self._fail(task_id, token)
            case _:
                await self._call("heartbeat", "update_agent_heartbeat", lease_tokens=[token])


class Submitter:
    """Submits its share of the tasks, and cancels and requeues some."""

    def __init__(self, spec: ProcessSpec, tools: ToolClient) -> None:
        self._spec, self._tools, self._random = spec, tools, spec.random
        self._recorder = Recorder(Path(spec.folder), spec.process)
        self._ids: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    async def submit_all(self) -> None:
        """Submit all tasks, a few at a time, until told to stop, then create the `.done` file."""
        numbers = iter(range(self._spec.tasks))
        await asyncio.gather(*(self._submit_some(numbers) for _ in range(6)))
        await asyncio.gather(*self._background)
        (Path(self._spec.folder) / f"{self._spec.name}.done").touch()

    async def _submit_some(self, numbers: Any) -> None:
        for number in numbers:
            if (Path(self._spec.folder) / STOP).exists():
                return
            await self._submit(number)
            if self._random.random() < 0.02:
                await self._requeue_one()

    async def _submit(self, number: int) -> None:
        """Submit one task. Its idempotency key allows retries until it is acknowledged."""
        new = self._new_task(number)
        answer = None
        while answer is None:
            try:
                answer = await self._call("submit", "distribute_task", **new)
            except Refusal as refusal:
                await asyncio.sleep(0.05)
                if refusal.code not in _UNCLEAR:
                    new |= {"depends_on": [], "deadline": None, "assign_to": None, "idempotency_key": f"{number} again"}
        self._ids.append(answer["task_id"])
        if self._random.random() < 0.03:
            task = asyncio.create_task(self._cancel(answer["task_id"]))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    def _new_task(self, number: int) -> Json:
        chance = self._random
        short = chance.random() < 0.95
        able, window = chance.choice(_DEMANDS)
        one = chance.random() < 0.06
        waits_for = chance.randint(1, 3) if self._ids and chance.random() < 0.1 else 0
        return {
            "description": f"task {number} of {self._spec.name}",
            "task_type": chance.choice(["general", "review", "build"]),
            "payload": {"number": number},
            "required_capabilities": able,
            "min_context_window": window,
            "priority": chance.choice(["critical", "high", "medium", "low"]),
            "assign_to": f"w{chance.randrange(self._spec.workers)}" if not able and not window and one else None,
            "depends_on": [chance.choice(self._ids[-200:]) for _ in range(waits_for)],
            "max_retries": chance.choice([0, 1, 3, 5, 10]),
            "lease_seconds": round(chance.uniform(*LEASES), 3) if short else LONG_LEASE,
            "deadline": time.time() + chance.uniform(1, 20) if chance.random() < 0.02 else None,
            "idempotency_key": str(number),
        }

    async def _call(self, op: str, tool: str, **arguments: Any) -> Json:
        async def act() -> Json:
            return _trimmed(op, await self._tools(tool, self._spec.name, **arguments))

        return await self._recorder.call(op, self._spec.name, arguments, act)

    async def _cancel(self, task_id: str) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.5))
        with suppress(Refusal):
            await self._call("cancel", "cancel_task", task_id=task_id)

    async def _requeue_one(self) -> None:
        with suppress(Refusal):
            dead = await self._call("list", "list_tasks", states=["dead"], limit=20)
            if dead["tasks"]:
                await self._call("requeue", "requeue_task", task_id=self._random.choice(dead["tasks"]))


def _trimmed(op: str, answer: Json) -> Json:
    """The part of an answer that the checks read."""
    if op in LEASING:
        wanted = ("task_id", "lease_token", "lease_until", "attempt")
        given = answer if op == "claim" else answer.get("work") or {"tasks": []}
        return {
            part: [{name: task[name] for name in wanted} for task in given.get(part, ())] for part in ("tasks", "held")
        }
    if op == "list":
        return {"tasks": [task["task_id"] for task in answer["tasks"]]}
    if op == "submit":
        return {name: answer.get(name) for name in ("task_id", "state", "assigned_to")}
    return answer
