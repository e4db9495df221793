"""Calls of the Redis Functions in library `rm1`, which is loaded if it is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis import exceptions as redis_errors

from memory_core.errors import StoreUnavailable
from memory_core.package_data import resource
from memory_core.records.codec import pack, unpack
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import shard_of, shards

LIBRARY = "rm1"
_KEYS = (
    "agent agents audit backlog blockers children chores counters data_key "
    "dead_tasks deadlines delayed dependents did events grant granted granting "
    "grants_due held history inbox job_streams keyed kinds kinds_of leases memory "
    "meta offers owner performance reshared same_prefix seen submitted task task_vector "
    "tombstones turns unclaimed unsettled "
).split()
"""The keys that the Functions name themselves, by their names in keys.py."""


def library_code() -> str:
    """Join redis/functions/*.lua by name into one library. Each file is a block; all share the table `rm`."""
    blocks = [f"do\n{path.read_text()}end\n" for path in sorted(resource("redis/functions").glob("*.lua"))]
    return "\n".join([f"#!lua name={LIBRARY}\nlocal rm = {{KEYS = {{{_key_names()}}}}}\n", *blocks])


def _key_names() -> str:
    """Write fields of a Lua table: each key without its namespace; of a key of records, the beginning."""
    keys = Keys("")
    found: dict[str, str | Callable[[str], str]] = {name: getattr(keys, name) for name in _KEYS}
    texts = {name: key if isinstance(key, str) else key("") for name, key in found.items()}
    return ", ".join(f"{name} = '{text.removeprefix(keys.prefix)}'" for name, text in texts.items())


async def load_library(client: Client) -> bool:
    """Load the library on each shard that lacks it; return whether one did. A shard that is down gets it later."""
    loading = (_load(shard) for shard in await shards(client))
    found = await asyncio.gather(*loading, return_exceptions=True)
    errors = [error for error in found if isinstance(error, BaseException)]
    if len(errors) == len(found):
        raise errors[0]
    return True in found


async def _load(shard: Client) -> bool:
    code = library_code()
    present = await shard.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
    if present and present[0].get(b"library_code", b"").decode() == code:
        return False
    await shard.execute_command("FUNCTION", "LOAD", "REPLACE", code)
    return True


async def call(client: Client, function: str, keys: list[str], **request: Any) -> dict[str, Any]:
    """Call a function with a msgpack map and return its unpacked answer.

    A missing function (Redis was flushed or replaced) did not run, so it is safe to load it and call again.

    Raises:
        StoreUnavailable: the function is missing, and this user may not load it. A server loads it at its next call.
    """
    arguments = (len(keys), *keys, pack(request))
    try:
        answer = await client.execute_command("FCALL", function, *arguments)
    except redis_errors.ResponseError as error:
        if "Function not found" not in str(error):
            raise
        try:
            await _load(await shard_of(client, keys))
        except redis_errors.NoPermissionError as refusal:
            raise StoreUnavailable("the Functions are missing until a server loads them") from refusal
        answer = await client.execute_command("FCALL", function, *arguments)
    return unpack(answer)
