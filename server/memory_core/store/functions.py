"""Typed calls of the Redis Functions in library `rm1`, which is loaded where it is missing."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as redis_errors

from memory_core.package_data import resource
from memory_core.records.codec import pack, unpack
from memory_core.store.connection import Client, shard_of, shards

LIBRARY = "rm1"


def library_code() -> str:
    """Join redis/functions/*.lua in the order of their names into one library."""
    return "\n".join(path.read_text() for path in sorted(resource("redis/functions").glob("*.lua")))


async def load_library(client: Client) -> bool:
    """Load the library on each shard that does not hold this very code; return whether it was loaded.

    A shard of a cluster that is away is left out: it gets the library by the first call there.
    """
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
    """Call one function with a msgpack map and return its msgpack answer.

    A function that is missing (Redis was flushed or replaced) was not run, so loading it and calling again
    is safe.

    Raises:
        redis.exceptions.RedisError: as `memory_core.store.connection.store_errors` expects.
    """
    arguments = (len(keys), *keys, pack(request))
    try:
        answer = await client.execute_command("FCALL", function, *arguments)
    except redis_errors.ResponseError as error:
        if "Function not found" not in str(error):
            raise
        await _load(await shard_of(client, keys))
        answer = await client.execute_command("FCALL", function, *arguments)
    return unpack(answer)
