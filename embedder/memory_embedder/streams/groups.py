"""Reads, claims and renews entries of a consumer group. The only module that knows the Redis commands for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from redis import exceptions as redis_errors

from memory_core.records import keys
from memory_core.redis_client import Client
from memory_core.store.streams import RELEASED_MS, Fields, entries

Entry = tuple[bytes, Fields]
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that was delivered but not acknowledged, and how often it was delivered."""

    entry: bytes
    deliveries: int


async def make_group(client: Client, stream: str, *, make_stream: bool) -> bool:
    """Create the sidecars' group at the start of the stream. False if the stream is missing and stays so."""
    try:
        await client.xgroup_create(stream, keys.GROUP, id="0", mkstream=make_stream)
    except redis_errors.ResponseError as error:
        if "BUSYGROUP" in str(error):
            return True
        if not make_stream and "requires the key to exist" in str(error):
            return False
        raise
    return True


async def read(
    client: Client, stream: str, consumer: str, *, count: int, block_ms: int | None = None, make_stream: bool = False
) -> list[Entry]:
    """Take up to `count` new entries. Creates the group if it is missing, for example after FLUSHALL."""

    async def attempt() -> list[Entry]:
        answer = await client.xreadgroup(keys.GROUP, consumer, {stream: ">"}, count=count, block=block_ms)
        return [(entry, fields) for _, entry, fields in entries(answer)]

    for _ in range(2):  # the stream may be removed again while this waits
        try:
            return await attempt()
        except redis_errors.ResponseError as error:
            if not is_missing(error):
                raise
        if not await make_group(client, stream, make_stream=make_stream):
            break
    return []


async def idle_entries(client: Client, stream: str, *, idle_ms: int, count: int) -> list[PendingEntry]:
    """Entries that no consumer has touched for `idle_ms`, oldest first."""
    return [pending for _, pending in await _pending(client, stream, count, idle_ms)]


async def zero_idle_entries(client: Client, stream: str, *, count: int) -> list[PendingEntry]:
    """Among the `count` oldest entries, those whose idle time is 0.

    They were touched in this millisecond, or at a time that is still ahead of Redis's clock.
    """
    return [pending for idle, pending in await _pending(client, stream, count) if not idle]


async def _pending(
    client: Client, stream: str, count: int, idle_ms: int | None = None
) -> list[tuple[int, PendingEntry]]:
    try:
        found = await client.xpending_range(stream, keys.GROUP, min="-", max="+", count=count, idle=idle_ms)
    except redis_errors.ResponseError as error:
        if is_missing(error):
            return []
        raise
    return [(item["time_since_delivered"], PendingEntry(item["message_id"], item["times_delivered"])) for item in found]


async def claim(client: Client, stream: str, consumer: str, found: Sequence[bytes], *, idle_ms: int) -> list[Entry]:
    """Claim the entries that are still idle. If several consumers try, one of them gets each entry."""
    if not found:
        return []
    claimed = await client.xclaim(stream, keys.GROUP, consumer, idle_ms, list(found))
    return [(entry, fields) for entry, fields in claimed if entry is not None and fields is not None]


async def renew(client: Client, stream: str, consumer: str, held: Iterable[bytes]) -> None:
    """Reset the idle time of entries, so that no other sidecar claims them."""
    await _touch(client, stream, consumer, held, idle_ms=0)


async def release(client: Client, stream: str, consumer: str, held: Iterable[bytes], deliveries: int) -> None:
    """Let other sidecars claim entries now instead of after a lease, and set their delivery count."""
    await _touch(client, stream, consumer, held, idle_ms=RELEASED_MS, deliveries=deliveries)


async def acknowledge(client: Client, stream: str, entry: bytes) -> None:
    """Acknowledge an entry and delete it from the stream."""
    await client.xackdel(stream, keys.GROUP, entry, ref_policy="ACKED")


async def remove_dead_consumers(client: Client, stream: str, *, idle_ms: int) -> int:
    """Remove consumers that hold no entry, have been idle for `idle_ms` and have no heartbeat. Returns how many.

    The heartbeat counts too because a live sidecar may not read from a quiet stream for long.
    """
    try:
        consumers = await client.xinfo_consumers(stream, keys.GROUP)
    except redis_errors.ResponseError as error:
        if is_missing(error):
            return 0
        raise
    removed = 0
    for consumer in consumers:
        name = consumer["name"].decode()
        if consumer["pending"] or consumer["idle"] < idle_ms or await client.exists(keys.sidecar(name)):
            continue
        await client.xgroup_delconsumer(stream, keys.GROUP, name)
        removed += 1
    return removed


def is_missing(error: redis_errors.ResponseError) -> bool:
    """Whether the stream or the group does not exist."""
    text = str(error)
    return "NOGROUP" in text or "no such key" in text.lower()


async def _touch(
    client: Client, stream: str, consumer: str, held: Iterable[bytes], *, idle_ms: int, deliveries: int | None = None
) -> None:
    found = list(held)
    for start in range(0, len(found), _CHUNK):
        part = found[start : start + _CHUNK]
        try:
            await client.xclaim(stream, keys.GROUP, consumer, 0, part, idle=idle_ms, retrycount=deliveries, justid=True)
        except redis_errors.ResponseError as error:
            if not is_missing(error):
                raise
