"""Reads what Redis itself keeps of memories after a run, the second witness beside the recorded calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from support.embedder_fixtures import wait_until

from memory_core.crypto.keyring import Keyring
from memory_core.records.keys import Keys
from memory_core.records.model import NO_VECTOR
from memory_core.store.connection import Client
from memory_server.security.audit import reader

from .load import MODEL

_AT_ONCE = 500
CONVERGE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One memory, or a further piece of one, as Redis has it. Without `expires_in`, seconds, it is there for ever."""

    key: str
    rev: int = 0
    model: str = ""
    expires_at: str = ""
    pieces: int = 1
    vectors: int = 1
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Remains:
    """All that is left of a run in Redis."""

    memories: dict[str, Kept] = field(default_factory=dict[str, Kept])
    pieces: dict[str, Kept] = field(default_factory=dict[str, Kept])
    changes: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Entries of the audit that were written together with a change, by what was done and to which memory."""
    audit_problems: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    """What should have been done by itself by now."""


async def unfinished(client: Client, keys: Keys) -> list[str]:
    """Say what is still to be done before all is at rest."""
    found: list[str] = []
    if jobs := await client.xlen(keys.jobs(MODEL)):
        found.append(f"{jobs} jobs are left")
    if chores := await client.zcard(keys.chores):
        found.append(f"{chores} long memories are not settled")
    counted = await reader.counters(client, keys)
    if counted.sealed < counted.given:
        found.append(f"{counted.given - counted.sealed} audit entries are not sealed")
    hashes = await _hashes(client, keys)
    if without := sum(one.model == NO_VECTOR + MODEL and _has_memory(keys, one, hashes) for one in hashes.values()):
        found.append(f"{without} pieces have no vector")
    return found


def _has_memory(keys: Keys, one: Kept, hashes: Mapping[str, Kept]) -> bool:
    """Whether it is a memory, or a piece of one that is still there."""
    memory_id = one.key.removeprefix(keys.chunk_prefix).rpartition(":")[0]
    return one.key.startswith(keys.memory_prefix) or keys.memory(memory_id) in hashes


async def settle(client: Client, keys: Keys) -> list[str]:
    """Wait until all is at rest; give what still is not after a long while."""
    left: list[str] = ["nothing was looked at"]

    async def at_rest() -> bool:
        left[:] = await unfinished(client, keys)
        return not left

    try:
        await wait_until(at_rest, CONVERGE_SECONDS)
    except AssertionError:
        return left
    return []


async def read(client: Client, keys: Keys, keyring: Keyring, left: list[str]) -> Remains:
    """Read all."""
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
    return Remains(memories, pieces, changes, problems, tuple(left))


async def _hashes(client: Client, keys: Keys) -> dict[str, Kept]:
    names = [
        raw.decode()
        for prefix in (keys.memory_prefix, keys.chunk_prefix)
        async for raw in client.scan_iter(match=f"{prefix}*", count=1000)
    ]
    found: dict[str, Kept] = {}
    for start in range(0, len(names), _AT_ONCE):
        found |= await _some(client, names[start : start + _AT_ONCE])
    return found


async def _some(client: Client, names: list[str]) -> dict[str, Kept]:
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(name, "rev", "model", "expires_at", "pieces")
        pipe.hkeys(name)
        pipe.pttl(name)
    rows = await pipe.execute()
    found: dict[str, Kept] = {}
    for name, head, fields, left in zip(names, rows[::3], rows[1::3], rows[2::3], strict=True):
        if fields:
            rev, model, expires_at, pieces = (value.decode() if value else "" for value in head)
            vectors = sum(field.startswith(b"vec_") for field in fields)
            expires_in = None if left < 0 else left / 1000
            found[name] = Kept(name, int(rev or 0), model, expires_at, int(pieces or 1), vectors, expires_in)
    return found
