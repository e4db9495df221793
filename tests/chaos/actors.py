"""The processes of a chaos run: workers that do, fail, forget and misuse tasks, and submitters that want them done.

Everything random comes from the seed of the run and the name of the process. Each call is recorded before it is made.
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

from .history import Json, Recorder, Refusal
from .surfaces import Surface, direct, remote, serve

HEARTBEAT_SECONDS = 0.5
MOST_TASKS = 4
LEASES = (1.0, 2.0)
LONG_LEASE = 6.0
_CLAIM_WAIT = 0.3
_PATIENCE = 20
"""Calls without an answer, one after the other, from which on the server is taken to be gone."""
_DEMANDS: list[tuple[list[str], int]] = [([], 0), ([], 0), (["even"], 0), (["odd"], 0), (["rare"], 0), ([], 100_000)]
"""Capabilities and context windows that tasks demand; some worker can do each."""
_UNSURE = {"outcome_unknown", "store_unavailable"}


@dataclass(frozen=True, slots=True)
class Part:
    """What one process is to do. `address` is of the server that it goes through; without one it serves itself."""

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
        """Name this life of the process in histories."""
        return f"{self.name}.{self.life}"

    @property
    def random(self) -> random.Random:
        """Give the chance that this life of the process has."""
        return random.Random(f"{self.seed} {self.process}")


async def play(part: Part) -> None:
    """Do a part until it is done, or until killed."""
    if part.role == "server":
        await serve(part.redis_url, part.port)
    elif part.address:
        await _play_remotely(part)
    else:
        async with direct(part.redis_url, part.namespace) as surface:
            await _perform(part, surface)


async def _play_remotely(part: Part) -> None:
    """Connect again whenever the server died."""
    while True:
        with suppress(Exception):
            async with remote(part.address, part.namespace, part.name) as surface:
                await _perform(part, surface)
        await asyncio.sleep(0.2)


async def _perform(part: Part, surface: Surface) -> None:
    if part.role == "worker":
        await Worker(part, surface).work()
    else:
        await Submitter(part, surface).submit_all()


class Worker:
    """Claims tasks and treats them well or badly."""

    def __init__(self, part: Part, surface: Surface) -> None:
        self._part, self._surface, self._random = part, surface, part.random
        self._recorder = Recorder(Path(part.folder), f"{part.process}.{time.monotonic_ns()}")
        self._held: dict[str, str] = {}
        self._old: list[tuple[str, str]] = []
        self._failures = 0

    async def work(self) -> None:
        """Work for ever; return when the server seems gone."""
        await self._register()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            while self._failures < _PATIENCE:
                for lease in await self._claim():
                    group.create_task(self._treat(lease))
                while len(self._held) >= MOST_TASKS:
                    await asyncio.sleep(0.02)
            raise ConnectionError("the server is gone")

    async def _call(self, op: str, tool: str, **arguments: Any) -> Json | None:
        """Make a call; None when it was refused or its outcome is unknown."""

        async def act() -> Json:
            return _trimmed(op, await self._surface(tool, self._part.name, **arguments))

        try:
            answer = await self._recorder.call(op, self._part.name, arguments, act)
        except Refusal as refusal:
            self._failures = self._failures + 1 if refusal.code == "outcome_unknown" else 0
            return None
        self._failures = 0
        return answer

    async def _register(self) -> None:
        while not await self._call(
            "register",
            "register_agent",
            capabilities=self._part.capabilities,
            context_window=self._part.window,
            max_tasks=MOST_TASKS,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        ):
            await asyncio.sleep(0.1)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS * self._random.uniform(0.4, 0.9))
            await self._call("heartbeat", "update_agent_heartbeat", lease_tokens=list(self._held.values()))

    async def _claim(self) -> list[Json]:
        limit = self._random.randint(1, MOST_TASKS)
        answer = await self._call("claim", "get_pending_tasks", limit=limit, wait_seconds=_CLAIM_WAIT, with_memories=0)
        if answer is None:
            await asyncio.sleep(0.05)
        tasks = answer["tasks"] if answer else []
        self._held |= {task["task_id"]: task["lease_token"] for task in tasks}
        return tasks

    async def _treat(self, lease: Json) -> None:
        """Complete most tasks; fail, abandon or overstay some, and try tokens that must be worth nothing."""
        task_id, token, fate = lease["task_id"], lease["lease_token"], self._random.random()
        await asyncio.sleep(self._random.uniform(0, 0.02) if fate < 0.95 else self._random.uniform(0.2, 2.5))
        if self._random.random() < 0.03:
            await self._call("complete", "complete_task", task_id=task_id, lease_token=self._forged(token))
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
        """Wait until a lease has just run out, or for much longer."""
        just = max(parse_time(lease["lease_until"], "lease_until") - time.time(), 0.0) + 0.003
        await asyncio.sleep(self._random.choice([just, self._random.uniform(*LEASES)]))

    def _forged(self, token: str) -> str:
        """Make a token of one that nobody ever gave out."""
        head, fence, secret = token.split(".")
        return self._random.choice([f"{head}.{int(fence) + 1}.{secret}", f"{head}.{fence}.{secret[::-1]}"])

    async def _fail(self, task_id: str, token: str, *, retry: bool = True) -> None:
        await self._call("fail", "fail_task", task_id=task_id, lease_token=token, error="it did not work", retry=retry)

    async def _misuse(self) -> None:
        """Present an old token, or one that nobody ever gave out."""
        task_id, token = self._random.choice(self._old[-20:])
        if self._random.random() < 0.3:
            token = self._forged(token)
        match self._random.randrange(3):
            case 0:
                await self._call("complete", "complete_task", task_id=task_id, lease_token=token)
            case 1:
                await self._fail(task_id, token)
            case _:
                await self._call("heartbeat", "update_agent_heartbeat", lease_tokens=[token])


class Submitter:
    """Submits its share of the tasks, and cancels and requeues some."""

    def __init__(self, part: Part, surface: Surface) -> None:
        self._part, self._surface, self._random = part, surface, part.random
        self._recorder = Recorder(Path(part.folder), part.process)
        self._ids: list[str] = []
        self._background: set[asyncio.Task[None]] = set()

    async def submit_all(self) -> None:
        """Submit, a few at a time, and say when all is said."""
        numbers = iter(range(self._part.tasks))
        await asyncio.gather(*(self._submit_some(numbers) for _ in range(6)))
        await asyncio.gather(*self._background)
        (Path(self._part.folder) / f"{self._part.name}.done").touch()

    async def _submit_some(self, numbers: Any) -> None:
        for number in numbers:
            await self._submit(number)
            if self._random.random() < 0.02:
                await self._requeue_one()

    async def _submit(self, number: int) -> None:
        """Submit one task; under its idempotency key it may be asked for until it is acknowledged."""
        new = self._new_task(number)
        answer = None
        while answer is None:
            try:
                answer = await self._call("submit", "distribute_task", **new)
            except Refusal as refusal:
                await asyncio.sleep(0.05)
                if refusal.code not in _UNSURE:
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
            "description": f"task {number} of {self._part.name}",
            "task_type": chance.choice(["general", "review", "build"]),
            "payload": {"number": number},
            "required_capabilities": able,
            "min_context_window": window,
            "priority": chance.choice(["critical", "high", "medium", "low"]),
            "assign_to": f"w{chance.randrange(self._part.workers)}" if not able and not window and one else None,
            "depends_on": [chance.choice(self._ids[-200:]) for _ in range(waits_for)],
            "max_retries": chance.choice([0, 1, 3, 5, 10]),
            "lease_seconds": round(chance.uniform(*LEASES), 3) if short else LONG_LEASE,
            "deadline": time.time() + chance.uniform(1, 20) if chance.random() < 0.02 else None,
            "idempotency_key": str(number),
        }

    async def _call(self, op: str, tool: str, **arguments: Any) -> Json:
        async def act() -> Json:
            return _trimmed(op, await self._surface(tool, self._part.name, **arguments))

        return await self._recorder.call(op, self._part.name, arguments, act)

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
    """Keep of an answer what the checks read."""
    if op == "claim":
        wanted = ("task_id", "lease_token", "lease_until", "attempt")
        return {"tasks": [{name: task[name] for name in wanted} for task in answer["tasks"]]}
    if op == "list":
        return {"tasks": [task["task_id"] for task in answer["tasks"]]}
    if op == "submit":
        return {name: answer.get(name) for name in ("task_id", "state", "assigned_to")}
    return answer
