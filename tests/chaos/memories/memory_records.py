"""Reads what Redis stores about memories after a run. The rules compare it with the recorded calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from memory_core.crypto.keyring import Keyring
from memory_core.records.keys import Keys
from memory_core.records.model import NO_VECTOR
from memory_core.redis_client import Client
from memory_server.security.audit import reader

from .load import MODEL

_BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A memory or a further chunk as Redis stores it. `expires_in` is in seconds; None means it never expires."""

    key: str
    rev: int = 0
    model: str = ""
    expires_at: str = ""
    pieces: int = 1
    vectors: int = 1
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a run left in Redis."""

    memories: dict[str, MemoryRecord] = field(default_factory=dict[str, MemoryRecord])
    pieces: dict[str, MemoryRecord] = field(default_factory=dict[str, MemoryRecord])
    changes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Audit entries written together with a change, by operation and memory."""
    audit_problems: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    """Background work that should be finished by now."""


async def unfinished(client: Client, keys: Keys) -> list[str]:
    """Describe the background work that is pending."""
    found: list[str] = []
    if jobs := await client.xlen(keys.jobs(MODEL)):
        found.append(f"{jobs} jobs are pending")
    if chores := await client.zcard(keys.chores):
        found.append(f"{chores} long memories have pending chunk updates")
    counted = await reader.counters(client, keys)
    if counted.sealed < counted.given:
        found.append(f"{counted.given - counted.sealed} audit entries are not sealed")
    hashes = await _hashes(client, keys)
    if without := sum(one.model.startswith(NO_VECTOR) and _has_memory(keys, one, hashes) for one in hashes.values()):
        found.append(f"{without} chunks have no vector")
    return found


def _has_memory(keys: Keys, one: MemoryRecord, hashes: Mapping[str, MemoryRecord]) -> bool:
    """Whether the record is a memory, or a chunk of one that still exists."""
    memory_id = one.key.removeprefix(keys.chunk_prefix).rpartition(":")[0]
    return one.key.startswith(keys.memory_prefix) or keys.memory(memory_id) in hashes


async def read(client: Client, keys: Keys, keyring: Keyring, left: list[str]) -> State:
    """Read everything."""
    found = await _hashes(client, keys)
    memories = {key.removeprefix(keys.memory_prefix): one for key, one in found.items() if ":mem:" in key}
    pieces = {key: one for key, one in found.items() if ":mem:" not in key}
    changes: Counter[tuple[str, str]] = Counter()
    async for page in reader.walk(client, keys):
        for entry in (entry.fields for entry in page):
            if "count" not in entry:
                changes.update((entry["op"], memory_id) for memory_id in entry["ids"].split())
    report = await reader.check(client, keys, keyring)
    problems = tuple(str(problem) for problem in report.problems)
    return State(memories, pieces, changes, problems, tuple(left))


async def _hashes(client: Client, keys: Keys) -> dict[str, MemoryRecord]:
    names = [
        raw.decode()
        for prefix in (keys.memory_prefix, keys.chunk_prefix)
        async for raw in client.scan_iter(match=f"{prefix}*", count=1000)
    ]
    found: dict[str, MemoryRecord] = {}
    for start in range(0, len(names), _BATCH_SIZE):
        found |= await _read_records(client, names[start : start + _BATCH_SIZE])
    return found


async def _read_records(client: Client, names: list[str]) -> dict[str, MemoryRecord]:
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(name, "rev", "model", "expires_at", "pieces")
        pipe.hkeys(name)
        pipe.pttl(name)
    rows = await pipe.execute()
    found: dict[str, MemoryRecord] = {}
    for name, head, fields, left in zip(names, rows[::3], rows[1::3], rows[2::3], strict=True):
        if fields:
            rev, model, expires_at, pieces = (value.decode() if value else "" for value in head)
            vectors = sum(field.startswith((b"vec_", b"vec16_")) for field in fields)
            expires_in = None if left < 0 else left / 1000
            found[name] = MemoryRecord(name, int(rev or 0), model, expires_at, int(pieces or 1), vectors, expires_in)
    return found
