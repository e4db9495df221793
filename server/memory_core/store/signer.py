"""Checks that a process has the key that signs a namespace.

Without it a process would report every record as altered and write unsigned entries into a signed audit.
"""

from __future__ import annotations

from redis import exceptions as redis_errors

from memory_core.crypto.keyring import Keyring
from memory_core.errors import KeyMissing, SignedElsewhere
from memory_core.records.damage import is_wrong_type
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import store_errors

_EARLIER_RELEASE = b"1"
_HINT = (
    "set MEMORY_MASTER_KEY, MEMORY_MASTER_KEY_FILE or MEMORY_MASTER_KEY_COMMAND as for the server that wrote it; "
    "after a change of keys, add the earlier key after a comma"
)


async def check_signer(client: Client, keyring: Keyring, namespace: str) -> None:
    """Compare the keys of this process with the one that signed last in a namespace.

    Raises:
        SignedElsewhere: it has not that key.
    """
    keys = Keys(namespace)
    try:
        signer = await client.hget(keys.counters, "signed")
    except redis_errors.ResponseError as error:
        if not is_wrong_type(error):
            raise
        return  # the sweeper removes the key, as if somebody had deleted it
    if signer == _EARLIER_RELEASE:
        signer = await _last_signer(client, keys) or signer
    if signer is None or (signer == _EARLIER_RELEASE and keyring.signer):
        return
    name = signer.decode(errors="replace")
    try:
        keyring.secret(name)
    except KeyMissing:
        mine = f"has the key {keyring.signer.id}" if keyring.signer else "has no key"
        by = "" if signer == _EARLIER_RELEASE else f" under the key {name[:16]}"
        message = f"the memories of namespace {namespace} are signed{by}, and this process {mine}"
        raise SignedElsewhere(message, hint=_HINT) from None


async def record_signer(client: Client, keyring: Keyring, namespace: str) -> None:
    """Record that nothing in a signed namespace needs an earlier key any more. Raises StoreUnavailable."""
    keys = Keys(namespace)
    async with store_errors(writing=True):
        if keyring.signer and await client.hexists(keys.counters, "signed"):
            await client.hset(keys.counters, "signed", keyring.signer.id)


async def _last_signer(client: Client, keys: Keys) -> bytes | None:
    """Return the key of the last audit entry: earlier releases recorded only that there is a key."""
    last = await client.xrevrange(keys.audit, count=1)
    return last[0][1].get(b"key") if last else None
