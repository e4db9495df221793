"""Reads the audit from Redis, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.signed_entry import SignedEntry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import store_errors
from memory_server.security.audit.seals import Seal, read_seal
from memory_server.security.audit.verifier import AuditCounts, AuditReport, Check

AT_ONCE = 1000
_RANGE, _REVERSED = b"XRANGE", b"XREVRANGE"
# As bytes: with command names as text, redis-py returns each entry as a dict, which hides duplicate fields.


async def counters(client: Client, keys: Keys) -> AuditCounts:
    """Return how many entries Redis counted as written and as sealed."""
    async with store_errors():
        given, sealed = await client.hmget(keys.counters, ["audit", "sealed"])
    return AuditCounts(*(int(number) if number and number.isdigit() else 0 for number in (given, sealed)))


async def last_seal(client: Client, keys: Keys) -> tuple[bytes, Seal | None]:
    """Return the id of the last seal (empty if there is none) and the seal (None if it is unreadable)."""
    async with store_errors():
        rows = await client.execute_command(_REVERSED, keys.seals, "+", "-", "COUNT", 1)
    return (rows[0][0], read_seal(*rows[0])) if rows else (b"", None)


async def entries_after(client: Client, keys: Keys, stream_id: bytes, most: int) -> list[SignedEntry]:
    """Return the entries after an id, or from the start if it is empty."""
    return [SignedEntry(at, tuple(parts)) for at, parts in await _page(client, keys.audit, stream_id, most)]


async def walk(client: Client, keys: Keys) -> AsyncGenerator[list[SignedEntry]]:
    """Yield all entries, page by page."""
    at = b""
    while page := await entries_after(client, keys, at, AT_ONCE):
        yield page
        at = page[-1].id


async def walk_seals(client: Client, keys: Keys) -> AsyncGenerator[Seal | None]:
    """Yield all seals; None for an unreadable one."""
    at = b""
    while page := await _page(client, keys.seals, at, AT_ONCE):
        for at, parts in page:
            yield read_seal(at, parts)


async def check(client: Client, keys: Keys, keyring: Keyring, expect: str | None = None) -> AuditReport:
    """Check the whole audit of a namespace. Entries written meanwhile count as unsealed."""
    counted = await counters(client, keys)
    running = Check(keys.namespace, [seal async for seal in walk_seals(client, keys)], counted, keyring)
    async for page in walk(client, keys):
        for entry in page:
            running.feed(entry)
    return running.finish(expect)


async def _page(client: Client, key: str, stream_id: bytes, most: int) -> list[Any]:
    start = b"(" + stream_id if stream_id else b"-"
    async with store_errors():
        return await client.execute_command(_RANGE, key, start, "+", "COUNT", most)
