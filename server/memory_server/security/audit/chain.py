"""Seals the audit entries written since the last seal. If two processes do so at once, Redis accepts one seal."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.signed_entry import SignedEntry
from memory_core.errors import KeyMissing
from memory_core.records import redis_time
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.times import to_redis
from memory_core.store.connection import store_errors
from memory_server.engine.redis_backend import Backend
from memory_server.security.audit import reader
from memory_server.security.audit.seals import Seal, make_seal, next_number, unsigned_to

log = logging.getLogger(__name__)
LEASE_SECONDS = 1
AT_ONCE = 500
UNKNOWN_KEY_SECONDS = 600.0
"""How long an entry under an unknown key waits for a server that knows the key, as during a key rotation."""


async def seal(backend: Backend, namespace: str) -> bool:
    """Seal all entries; return False if another process is sealing them."""
    if backend.keyring.signer is None:
        return True
    keys, name = Keys(namespace), new_id()
    if not await backend.hold_lease(keys.sealer, name, LEASE_SECONDS):
        return False
    try:
        while await _seal_some(backend, keys):
            await backend.hold_lease(keys.sealer, name, LEASE_SECONDS)
        return True
    except KeyMissing as error:
        log.warning("another server must seal the audit of %s: %s", namespace, error.message)
        return True
    finally:
        client = await backend.client()
        async with store_errors():
            if await client.get(keys.sealer) == name.encode():
                await client.delete(keys.sealer)


async def is_unsealed(backend: Backend, namespace: str) -> bool:
    """Whether some entries are not sealed."""
    counted = await backend.read(lambda client: reader.counters(client, Keys(namespace)))
    return counted.given > counted.sealed


async def _seal_some(backend: Backend, keys: Keys) -> bool:
    client = await backend.client()
    last_id, previous = await reader.last_seal(client, keys)
    found = await reader.entries_after(client, keys, last_id, AT_ONCE)
    entries = _up_to_unknown_key(backend.keyring, keys.namespace, found)
    if not entries:
        return False
    broken = await _broken_before(backend, keys, last_id, previous)
    broken = broken or first_problem(backend.keyring, keys.namespace, previous, entries)
    new = make_seal(backend.keyring, keys.namespace, previous, entries, at=to_redis(redis_time.now()), broken=broken)
    answer = await backend.write(
        "rm1_seal",
        [keys.seals, keys.counters],
        repeatable=True,
        previous=last_id.decode(),
        id=new.id.decode(),
        fields=new.fields(),
        last=new.last,
    )
    if broken and answer["status"] == "sealed":
        log.error("the audit of %s was tampered with: %s; see `redis-memory audit verify`", keys.namespace, broken)
    return True


async def _broken_before(backend: Backend, keys: Keys, last_id: bytes, previous: Seal | None) -> str:
    """Return the problem of the seal that the next one continues; empty if there is none."""
    if previous is not None:
        genuine = previous.is_genuine(backend.keyring, keys.namespace)
        return "" if genuine else f"{previous.first}:seal altered"
    sealed = (await reader.counters(await backend.client(), keys)).sealed
    return f"{sealed}:seal {'altered' if last_id else 'removed'}" if last_id or sealed else ""


def first_problem(keyring: Keyring, namespace: str, previous: Seal | None, entries: Sequence[SignedEntry]) -> str:
    """Return the first problem of the entries to seal as `<number>:<kind>`; empty if there is none."""
    expected, unsigned = next_number(previous, entries), unsigned_to(previous, entries)
    for entry in entries:
        if entry.number != expected:
            return f"{expected}:{'removed' if entry.number > expected else 'reordered'}"
        found = entry.check(keyring, namespace)
        if found != "ok" and not (found == "unsigned" and entry.number <= unsigned):
            return f"{expected}:{found}"
        expected += 1
    return ""


def _up_to_unknown_key(keyring: Keyring, namespace: str, entries: list[SignedEntry]) -> list[SignedEntry]:
    """Return the entries before the first recent one under an unknown key; raises KeyMissing if there are none."""
    before = (redis_time.now() - UNKNOWN_KEY_SECONDS) * 1000
    for number, entry in enumerate(entries):
        if entry.position[0] >= before and entry.check(keyring, namespace) == "unknown key":
            if not number:
                raise KeyMissing("an entry names a key that this server does not know")
            return entries[:number]
    return entries
