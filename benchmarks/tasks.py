"""Tasks per second of the Functions, compared with a plain stream and consumer group on the same Redis as baseline.

Both take three calls per task. The baseline has no states, priorities, capabilities, fairness, leases or history.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.metrics import percentile
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.task_kind import TaskKind
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store import functions
from memory_core.store.connection import connect
from memory_core.store.index import ensure_namespace
from memory_server.local.attach import attach
from memory_server.local.stop import stop

CLIENTS = (1, 8, 64)
ROUNDS = 7
TASKS = 960
"""Tasks per round; divisible by every number of clients."""
DESCRIPTION = "Read the report of the night run and write down which of the nine tests failed, and why."
KEEP, OPEN, CLAIM_SECONDS = 7 * 86_400, 1_000_000, 60.0
PAUSE_SECONDS = 0.2
"""Pause of a client between two tasks in the last measurement."""
_GROUP = "workers"


class Side(Protocol):
    """One way to hand out tasks. `client` is the number of the caller."""

    @property
    def commands(self) -> Sequence[str]:
        """The commands whose Redis time counts."""
        ...

    async def submit(self, client: int) -> None:
        """Hand in one task."""
        ...

    async def claim(self, client: int) -> Any:
        """Take one task."""
        ...

    async def complete(self, client: int, claimed: Any) -> None:
        """End a task."""
        ...


class Stream:
    """The baseline: XADD, XREADGROUP, XACK."""

    commands = ("xadd", "xreadgroup", "xack")

    def __init__(self, clients: Sequence[Client], key: str) -> None:
        self._clients, self._key = clients, key

    async def open(self) -> Stream:
        """Make the stream and its group."""
        await self._clients[0].xgroup_create(self._key, _GROUP, id="0", mkstream=True)
        return self

    async def submit(self, client: int) -> None:
        await self._clients[client].xadd(self._key, {"id": new_id(), "description": DESCRIPTION})

    async def claim(self, client: int) -> Any:
        found = await self._clients[client].xreadgroup(_GROUP, str(client), {self._key: ">"}, count=1)
        return found[self._key.encode()][0][0][0]

    async def complete(self, client: int, claimed: Any) -> None:
        await self._clients[client].xack(self._key, _GROUP, claimed)


class Functions:
    """The task Functions, with the requests of the use cases. A task's text has no vector here."""

    commands = ("fcall",)

    def __init__(self, clients: Sequence[Client], namespace: str) -> None:
        self._clients, self._keys = clients, Keys(namespace)
        self._kind = TaskKind(("python",))

    async def open(self) -> Functions:
        """Make the namespace and register an agent for each client."""
        await ensure_namespace(self._clients[0], self._keys.namespace, VectorStoreSettings())
        for client in range(len(self._clients)):
            fields = {
                "type": "custom",
                "capabilities": "python",
                "context_window": 0,
                "max_tasks": 1000,
                "heartbeat_seconds": 3600,
                "description": "",
                "profile": b"",
            }
            await self._call(
                client,
                "rm1_agent_register",
                self._keys.agent(f"agent-{client}"),
                candidate=new_id(),
                fields=[part for pair in fields.items() for part in pair],
                audit=self._audit(client, "register_agent"),
            )
        return self

    async def submit(self, client: int) -> None:
        task_id = new_id()
        fields = {
            "description": DESCRIPTION,
            "type": "general",
            "priority": "medium",
            "rank": 2,
            "kind": self._kind.id,
            "kind_spec": self._kind.spec,
            "open_kind": self._kind.id,
            "open_kind_spec": self._kind.spec,
            "submitter": f"agent-{client}",
            "max_retries": 3,
            "lease_seconds": 300.0,
            "claim_seconds": CLAIM_SECONDS,
        }
        answer = await self._call(
            client,
            "rm1_task_submit",
            self._keys.leases,
            self._keys.idempotency(f"task:agent-{client}", ""),
            id=task_id,
            fields=[part for pair in fields.items() for part in pair],
            depends_on=[],
            only="",
            deadline=None,
            vector=None,
            candidates=[],
            quota=OPEN,
            idempotency=None,
            audit=self._audit(client, "distribute_task", task_id),
        )
        assert answer["status"] == "submitted"

    async def claim(self, client: int) -> Any:
        answer = await self._call(
            client, "rm1_task_claim", self._keys.leases, call=new_id(), secrets=[secrets.token_hex(8)], keep=KEEP
        )
        return answer["tasks"][0]

    async def complete(self, client: int, claimed: Any) -> None:
        call = new_id()
        answer = await self._call(
            client,
            "rm1_task_complete",
            self._keys.leases,
            id=claimed["id"],
            token=claimed["lease_token"],
            call=call,
            keep=KEEP,
            audit=self._audit(client, "complete_task", claimed["id"]),
            fields=["last_call", call, "result", '"none failed"'],
            duration_ms=None,
        )
        assert answer["status"] == "completed"

    async def _call(self, client: int, function: str, *keys: str, **request: Any) -> dict[str, Any]:
        request |= {"prefix": self._keys.prefix, "agent": f"agent-{client}"}
        return await functions.call(self._clients[client], function, list(keys), **request)

    def _audit(self, client: int, op: str, *ids: str) -> dict[str, Any]:
        return {"who": f"agent-{client}", "op": op, "ids": list(ids)}


@dataclass(slots=True)
class Figures:
    """Results of one phase, per round: tasks per second and Redis time per call; per call: milliseconds."""

    rates: list[float] = field(default_factory=list[float])
    redis_us: list[float] = field(default_factory=list[float])
    latencies: list[float] = field(default_factory=list[float])

    def row(self) -> str:
        """The median rate with its spread."""
        return f"{statistics.median(self.rates):,.0f} ({min(self.rates):,.0f} to {max(self.rates):,.0f})"


Phase = Callable[[int], Awaitable[None]]


async def timed(admin: Client, side: Side, phase: Phase, clients: int, tasks: int, figures: Figures) -> None:
    """Run a phase once for every task, spread over the clients, and record the figures."""
    await admin.config_resetstat()

    async def work(client: int) -> None:
        for _ in range(tasks // clients):
            await phase(client)

    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in range(clients)))
    figures.rates.append(tasks / (time.perf_counter() - started))
    stats = await admin.info("commandstats")
    spent = [stats[f"cmdstat_{command}"] for command in side.commands if f"cmdstat_{command}" in stats]
    figures.redis_us.append(sum(stat["usec"] for stat in spent) / tasks)


async def one_round(admin: Client, side: Side, clients: int, figures: dict[str, Figures]) -> None:
    """Submit all, claim all, complete all; then each task from beginning to end."""
    claimed: list[list[Any]] = [[] for _ in range(clients)]

    async def claim(client: int) -> None:
        claimed[client].append(await side.claim(client))

    async def complete(client: int) -> None:
        await side.complete(client, claimed[client].pop())

    async def whole(client: int) -> None:
        await side.submit(client)
        started = time.perf_counter()
        task = await side.claim(client)
        figures["whole"].latencies.append((time.perf_counter() - started) * 1000)
        await side.complete(client, task)

    phases = {"submit": side.submit, "claim": claim, "complete": complete, "whole": whole}
    for name, phase in phases.items():
        await timed(admin, side, phase, clients, TASKS, figures[name])


async def claims_at_work(side: Side, clients: int) -> list[float]:
    """Milliseconds of claims by clients that pause between two tasks."""
    latencies: list[float] = []

    async def work(client: int) -> None:
        await asyncio.sleep(PAUSE_SECONDS * client / clients)
        for _ in range(40):
            await side.submit(client)
            started = time.perf_counter()
            task = await side.claim(client)
            latencies.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)
            await side.complete(client, task)

    await asyncio.gather(*(work(client) for client in range(clients)))
    return latencies


@asynccontextmanager
async def redis_with(clients: int) -> AsyncGenerator[tuple[Client, list[Client]]]:
    """Start an embedded Redis without a sidecar; yields an administrator and some clients."""
    with tempfile.TemporaryDirectory(prefix="redis-memory-bench-") as folder:
        local = await attach(Path(folder), sidecar=())
        admin, *others = [connect(local.url) for _ in range(clients + 1)]
        try:
            await functions.load_library(admin)
            yield admin, others
        finally:
            for client in (admin, *others):
                await client.aclose()
            local.close()
            await asyncio.to_thread(stop, Path(folder))


async def compare(console: Console) -> None:
    """Measure both sides in turn and print them."""
    names, measured = ("submit", "claim", "complete", "whole"), dict[str, Any]()
    async with redis_with(max(CLIENTS)) as (admin, connections):
        for clients in CLIENTS:
            ours, floor = ({name: Figures() for name in names} for _ in range(2))
            for number in range(ROUNDS):
                mine = connections[:clients]
                stream = await Stream(mine, f"bench:{{{clients}-{number}}}").open()
                await one_round(admin, stream, clients, floor)
                team = await Functions(mine, f"bench-{clients}-{number}").open()
                await one_round(admin, team, clients, ours)
                await admin.flushall()
            rates = {name: {"ours": ours[name].rates, "streams": floor[name].rates} for name in names}
            measured[str(clients)] = rates
            console.print(_table(clients, ours, floor))
        clients = max(CLIENTS)
        team = await Functions(connections, "bench-pace").open()
        pace = await claims_at_work(team, clients)
        results.save("tasks", measured | {"claims_at_work_ms": pace})
        console.print(
            f"Claims of {clients} clients that work {PAUSE_SECONDS * 1000:.0f} ms on each task: "
            f"p50 {percentile(pace, 0.5):.2f} ms, p99 {percentile(pace, 0.99):.2f} ms"
        )


def _table(clients: int, ours: dict[str, Figures], floor: dict[str, Figures]) -> Table:
    table = Table(title=f"{clients} clients, {ROUNDS} rounds of {TASKS} tasks: tasks/s, median (spread)")
    for column in ("", "Functions", "streams", "ratio", "Redis µs a task", "streams'", "claim p50 / p99 ms"):
        table.add_column(column)
    for name, mine in ours.items():
        theirs = floor[name]
        ratio = statistics.median(a / b for a, b in zip(mine.rates, theirs.rates, strict=True))
        both = (statistics.median(mine.redis_us), statistics.median(theirs.redis_us))
        waits = mine.latencies
        claims = f"{percentile(waits, 0.5):.2f} / {percentile(waits, 0.99):.2f}" if waits else ""
        table.add_row(name, mine.row(), theirs.row(), f"{ratio:.0%}", f"{both[0]:.1f}", f"{both[1]:.1f}", claims)
    return table


if __name__ == "__main__":
    uvloop.run(compare(Console(width=130)))
