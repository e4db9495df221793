"""Lets the oldest entries go, up to a seal, so that what is left can still be checked from that seal on."""

from __future__ import annotations

from collections.abc import Callable

from memory_core.crypto.signed_entry import TRIM
from memory_core.records import redis_time
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.settings.groups import AuditSettings
from memory_server.engine.backend import Backend
from memory_server.security.audit import reader
from memory_server.security.audit.seals import Seal

Goes = Callable[[int, int], bool]
"""Whether what has a number and a time, in milliseconds, is to go."""
SLICE = 10_000
"""Entries that one Function call drops at most, about, so that Redis never stalls."""
DAY = 86_400.0


async def trim(backend: Backend, namespace: str, settings: AuditSettings, *, now: float | None = None) -> int:
    """Drop what is older or more than is to be kept, a slice at a time; give the last number that went, or 0."""
    before = ((now or redis_time.now()) - settings.keep_days * DAY) * 1000 if settings.keep_days else 0.0
    keys, went = Keys(namespace), 0
    counted = await reader.counters(await backend.client(), keys)
    most = counted.given - settings.keep_entries if settings.keep_entries else 0
    if backend.keyring.signer is None and counted.sealed:
        return 0
    while dropped := await _trim_some(backend, keys, before, most):
        went = dropped
    return went


async def _trim_some(backend: Backend, keys: Keys, before: float, most: int) -> int:
    """Drop one slice of what is older than a time in milliseconds, or numbered up to `most`."""
    client = await backend.client()
    first = next(iter(await reader.entries_after(client, keys, b"", 1)), None)
    if first is None:
        return 0

    def goes(number: int, milliseconds: int) -> bool:
        return first.number <= number < first.number + SLICE and (number <= most or milliseconds < before)

    if not goes(first.number, first.position[0]):
        return 0
    if backend.keyring.signer is None:
        base, last, at = None, *await _last_entry_that_goes(client, keys, goes)
    else:
        seal = await _last_seal_that_goes(client, keys, goes, first.number)
        if seal is None:
            return 0
        base, last, at = seal.id, seal.last, seal.id
    kept = next(iter(await reader.entries_after(client, keys, at, 1)), None)
    if kept is None:
        return 0
    answer = await backend.write(
        "rm1_audit_trim",
        [keys.audit, keys.counters, keys.seals],
        base=base and base.decode(),
        keep_from=kept.id.decode(),
        audit=system_entry("server", TRIM, [str(last)]),
    )
    return last if answer["status"] == "trimmed" else 0


async def _last_seal_that_goes(client: Client, keys: Keys, goes: Goes, first: int) -> Seal | None:
    """Find the newest seal all of whose entries are to go, of one slice; the entries begin at `first`."""
    found, at = None, b""
    while page := await reader.seals_after(client, keys, at, reader.AT_ONCE):
        at = page[-1][0]
        for _, seal in page:
            if seal is None or (seal.last >= first and not goes(seal.last, seal.position[0])):
                return found
            found = seal if seal.last >= first else None
    return found


async def _last_entry_that_goes(client: Client, keys: Keys, goes: Goes) -> tuple[int, bytes]:
    """Find the newest entry that is to go, of one slice, where nothing is sealed."""
    last, at = 0, b""
    while page := await reader.entries_after(client, keys, at, reader.AT_ONCE):
        for entry in page:
            if not goes(entry.number, entry.position[0]):
                return last, at
            last, at = entry.number, entry.id
    return last, at
