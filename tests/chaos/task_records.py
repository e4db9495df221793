"""Reads what Redis stores about tasks. The checker compares it with the recorded calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memory_core.records.codec import unpack
from memory_core.records.keys import Keys
from memory_core.records.names import split_labels
from memory_core.redis_client import Client

_BATCH_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a task's history, timed by Redis's clock."""

    op: str
    at: float
    agent: str | None = None
    fence: int | None = None
    attempt: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task as Redis stores it."""

    id: str
    state: str
    entries: tuple[Entry, ...]
    depends_on: tuple[str, ...] = ()
    max_retries: int = 100
    fence: int | None = None

    @property
    def leases(self) -> list[Entry]:
        """Its leases in the order of claims, with those that another session took over."""
        return [entry for entry in self.entries if entry.op in {"leased", "resumed"}]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Queue entries that ended tasks must not leave behind, each with its key."""

    found: tuple[tuple[str, str], ...] = ()


async def read_tasks(client: Client, keys: Keys) -> dict[str, TaskRecord]:
    """Read all tasks of a namespace with their histories."""
    prefix = keys.task("")
    names = [raw.decode() async for raw in client.scan_iter(match=prefix + "*", count=_BATCH_SIZE)]
    ids = sorted(name.removeprefix(prefix) for name in names)
    records: dict[str, TaskRecord] = {}
    for start in range(0, len(ids), _BATCH_SIZE):
        records |= await _read(client, keys, ids[start : start + _BATCH_SIZE])
    return records


async def _read(client: Client, keys: Keys, ids: list[str]) -> dict[str, TaskRecord]:
    pipe = client.pipeline(transaction=False)
    for task_id in ids:
        pipe.hmget(keys.task(task_id), "state", "depends_on", "max_retries", "fence")
        pipe.lrange(keys.history(task_id), 0, -1)
    rows = await pipe.execute()
    return {
        task_id: TaskRecord(
            task_id,
            fields[0].decode(),
            tuple(_entry(row) for row in history),
            split_labels(fields[1].decode() if fields[1] else None),
            int(fields[2]),
            int(fields[3]) if fields[3] else None,
        )
        for task_id, fields, history in zip(ids, rows[::2], rows[1::2], strict=True)
    }


def _entry(row: bytes) -> Entry:
    found = unpack(row)
    at, fence = float(found["at"]), found.get("fence")
    number = None if fence is None else int(fence)
    return Entry(found["op"], at, found.get("agent"), number, found.get("attempt"), found.get("error"))


async def read_audit(client: Client, keys: Keys) -> Counter[tuple[str, str]]:
    """Count the audit's entries of changes by operation and task. Entries with a count changed nothing."""
    counts: Counter[tuple[str, str]] = Counter()
    last = "-"
    while rows := await client.xrange(keys.audit, min=last, count=_BATCH_SIZE):
        for fields in (row for _, row in rows if b"count" not in row):
            for task_id in fields[b"ids"].decode().split():
                counts[fields[b"op"].decode(), task_id] += 1
        last = "(" + rows[-1][0].decode()
    return counts


async def read_leftovers(client: Client, keys: Keys, agents: list[str]) -> Leftovers:
    """Find what is still queued, leased, delayed or held by an agent."""
    found: list[tuple[str, str]] = []
    for key in (keys.leases, keys.unclaimed, keys.delayed, keys.deadlines):
        found += [(key, raw.decode()) for raw in await client.zrange(key, 0, -1)]
    for raw in await client.hkeys(keys.kinds):
        found.append((keys.kinds, raw.decode()))
    for name in agents:
        found += [(keys.held(name), raw.decode()) for raw in await client.smembers(keys.held(name))]
        found += [(keys.inbox(name), fields[b"task"].decode()) for _, fields in await client.xrange(keys.inbox(name))]
    return Leftovers(tuple(found))
