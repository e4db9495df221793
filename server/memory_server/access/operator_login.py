"""One-time keys for the operator's dashboard. Redis keeps only a hash of a key, for an hour at most.

The record is signed with its expiry, so that write access to Redis can neither make nor prolong a key.
"""

from __future__ import annotations

import hmac
import re
import secrets

from memory_core.records import redis_time
from memory_core.records.authority_codes import Authority
from memory_core.records.ids import new_id
from memory_core.records.keys import operator_key
from memory_core.records.names import check_name
from memory_core.records.times import to_redis
from memory_core.records.token import hash_of
from memory_core.store.connection import store_errors
from memory_server.engine.redis_backend import Backend

SECONDS = 3600
_KEY = re.compile(r"([0-9a-hjkmnp-tv-z]{26})_([A-Za-z0-9_-]{43})", re.ASCII)
_NO_HASH = "0" * 64


async def admit_once(backend: Backend, namespace: str, seconds: int = SECONDS) -> str:
    """Make a key that opens a namespace once; raises StoreUnavailable if Redis does not answer."""
    key_id, secret = new_id(), secrets.token_urlsafe(32)
    await backend.client()  # loads the signing key
    fields = (hash_of(secret), check_name(namespace, "namespace"), to_redis(redis_time.now() + seconds))
    code = backend.integrity.sign_authority(Authority.OPERATOR_KEY, namespace, key_id, *fields)
    stored = " ".join([*fields, code])
    await backend.read(lambda client: client.set(operator_key(key_id), stored, ex=seconds))
    return f"{key_id}_{secret}"


async def redeem(backend: Backend, key: str) -> str | None:
    """Use up a key and return its namespace; None if it is unknown, wrong, expired or used. Raises StoreUnavailable."""
    if (parsed := _KEY.fullmatch(key)) is None:
        return None
    name = operator_key(parsed[1])
    raw = await backend.read(lambda client: client.get(name))
    stored = (*raw.decode().split(" "), "", "", "")[:4] if raw else (_NO_HASH, "", "", "")
    expected, namespace, until, code = stored
    if not hmac.compare_digest(hash_of(parsed[2]), expected):
        return None
    signed = (expected, namespace, until)
    failure = backend.integrity.check_authority(Authority.OPERATOR_KEY, namespace, parsed[1], code, *signed)
    if failure or float(until or 0) <= redis_time.now():
        return None
    client = await backend.client()
    async with store_errors(writing=True):
        deleted = await client.delete(name)  # of several callers at once, only one deletes it
    return namespace if deleted else None
