"""Deletes the oldest audit entries up to a seal, so that the rest can still be checked from that seal on."""

from __future__ import annotations

from collections.abc import Callable

from memory_core.crypto.signed_entry import TRIM
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.settings.groups import AuditSettings
from memory_server.engine.redis_backend import Backend
from memory_server.security.audit import reader
from memory_server.security.audit.seals import Seal

Deletable = Callable[[int, int], bool]
"""Whether to delete an entry, by its number and its time in milliseconds."""
SLICE = 10_000
"""About how many entries one Function call deletes at most, so that Redis never stalls."""
DAY = 86_400.0


async def trim(backend: Backend, namespace: str, settings: AuditSettings, *, now: float | None = None) -> int:
    """Delete the entries beyond the configured age or number; return the last deleted number, or 0."""
    before = ((now or redis_time.now()) - settings.keep_days * DAY) * 1000 if settings.keep_days else 0.0
    keys, deleted = Keys(namespace), 0
    counted = await reader.counters(await backend.client(), keys)
    most = counted.given - settings.keep_entries if settings.keep_entries else 0
    if backend.keyring.signer is None and counted.sealed:
        return 0
    while last := await _trim_some(backend, keys, before, most):
        deleted = last
    return deleted


async def _trim_some(backend: Backend, keys: Keys, before: float, most: int) -> int:
    client = await backend.client()
    oldest = await reader.entries_after(client, keys, b"", 1)
    if not oldest:
        return 0
    first = oldest[0]

    def deletable(number: int, milliseconds: int) -> bool:
        return first.number <= number < first.number + SLICE and (number <= most or milliseconds < before)

    if not deletable(first.number, first.position[0]):
        return 0
    if backend.keyring.signer is None:
        base, last, at = None, *await _last_deletable_entry(client, keys, deletable)
    else:
        seal = await _last_deletable_seal(client, keys, deletable, first.number)
        if seal is None:
            return 0
        base, last, at = seal.id, seal.last, seal.id
    following = await reader.entries_after(client, keys, at, 1)
    if not following:
        return 0
    answer = await backend.write(
        "rm1_audit_trim",
        [keys.audit, keys.counters, keys.seals],
        base=base and base.decode(),
        keep_from=following[0].id.decode(),
        audit=system_entry("server", TRIM, [str(last)]),
    )
    return last if answer["status"] == "trimmed" else 0


async def _last_deletable_seal(client: Client, keys: Keys, deletable: Deletable, first: int) -> Seal | None:
    """Find the newest seal of a slice whose entries may all be deleted. The entries begin at `first`."""
    found = None
    async for seal in reader.walk_seals(client, keys):
        if seal is None or (seal.last >= first and not deletable(seal.last, seal.position[0])):
            return found
        found = seal if seal.last >= first else None
    return found


async def _last_deletable_entry(client: Client, keys: Keys, deletable: Deletable) -> tuple[int, bytes]:
    """Find the newest entry of a slice that may be deleted, in an audit without seals."""
    last, at = 0, b""
    async for page in reader.walk(client, keys):
        for entry in page:
            if not deletable(entry.number, entry.position[0]):
                return last, at
            last, at = entry.number, entry.id
    return last, at
