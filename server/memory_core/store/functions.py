"""Calls of the Redis Functions in library `rm1`, which is loaded if it is missing or was changed.

The library names its release. A process never loads its own over one of a newer release.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from redis import exceptions as redis_errors

from memory_core.errors import StoreFull, StoreUnavailable, UnsafeStart
from memory_core.package_data import resource
from memory_core.records.codec import pack, unpack
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_core.store.connection import shard_of, shards

LIBRARY = "rm1"
RELEASE = version("redis-memory-gpu")
_NAMES_RELEASE = "rm1_release"
"""A Function whose description is the release of the library. FUNCTION LIST shows it without a call."""
_REDIS = """local redis = {
  register_function = redis.register_function,
  error_reply = function(...) return redis.error_reply(...) end,
  pcall = function(...) return redis.pcall(...) end,
  sha1hex = function(text) return redis.sha1hex(text) end,
}
"""
"""What the Functions use of Redis's own table, which has no `pcall` until they run. redis/functions/02_damage.lua adds
`call`."""
_KEYS = (
    "agent agents audit avoided backlog blockers caches children chores counters damaged data_key "
    "dead_tasks deadlines delayed dependents did events grant granted granting grants_due held "
    "history inbox job_streams keyed kinds kinds_of leases memory meta offers owner performance "
    "quarantined reshared same_prefix seen seq sessions submitted task task_vector tokens tombstones turns turns_of "
    "unclaimed unsettled worked "
).split()
"""The keys that the Functions name themselves, by their names in keys.py."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library that Redis has loaded. `release` is empty if it names none."""

    release: str
    code: str

    @property
    def is_own(self) -> bool:
        """Whether it is this process's library, byte for byte."""
        return self.code == library_code()

    @property
    def is_newer(self) -> bool:
        """Whether it is of a newer release than this process."""
        return _order(self.release) > _order(RELEASE)

    @property
    def digest(self) -> str:
        """The SHA-256 of the code, in hex."""
        return _digest(self.code)


class NewerLibrary(UnsafeStart):
    """Redis has the library of a newer release."""

    def __init__(self, library: Library) -> None:
        found = f"release {library.release} has loaded its Functions into this Redis; this is release {RELEASE}"
        super().__init__(found, hint="upgrade and restart this process, or stop the newer ones and delete the library")
        self.library = library


@cache
def library_code(release: str = RELEASE) -> str:
    """Join redis/functions/*.lua by name into one library. Each file is a block; all share `rm` and `redis`."""
    blocks = [f"do\n{path.read_text()}end\n" for path in sorted(resource("redis/functions").glob("*.lua"))]
    named = (
        f"redis.register_function{{function_name = '{_NAMES_RELEASE}', description = '{release}', "
        f"flags = {{'no-writes'}}, callback = function() return '{release}' end}}\n"
    )
    head = f"#!lua name={LIBRARY}\nlocal rm = {{KEYS = {{{_key_names()}}}}}\n{_REDIS}{named}"
    return "\n".join([head, *blocks])


@cache
def library_digest() -> str:
    """Return the SHA-256 of this release's library, in hex."""
    return _digest(library_code())


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _order(release: str) -> list[int]:
    """Return the numbers of a release, for comparisons."""
    return [int(number) for number in re.findall(r"\d{1,9}", release)[:3]]


def _key_names() -> str:
    """Write fields of a Lua table: each key without its namespace; of a key of records, the beginning."""
    keys = Keys("")
    found: dict[str, str | Callable[[str], str]] = {name: getattr(keys, name) for name in _KEYS}
    texts = {name: key if isinstance(key, str) else key("") for name, key in found.items()}
    return ", ".join(f"{name} = '{text.removeprefix(keys.prefix)}'" for name, text in texts.items())


async def load_library(client: Client) -> bool:
    """Load the library on each shard that lacks it or has another; return whether one did.

    A shard that is down gets it later.

    Raises:
        NewerLibrary: a shard has the library of a newer release, which stays.
    """
    loading = (_load(shard) for shard in await shards(client))
    found = await asyncio.gather(*loading, return_exceptions=True)
    errors = [error for error in found if isinstance(error, BaseException)]
    newer = [error for error in errors if isinstance(error, NewerLibrary)]
    if newer or len(errors) == len(found):
        raise (newer or errors)[0]
    return True in found


async def loaded_library(shard: Client) -> Library | None:
    """Return the library that one Redis server has loaded."""
    present = await shard.execute_command("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
    if not present:
        return None
    named = (one for one in present[0][b"functions"] if one[b"name"] == _NAMES_RELEASE.encode())
    release = next((one[b"description"] or b"" for one in named), b"")
    return Library(release.decode(errors="replace")[:64], present[0][b"library_code"].decode(errors="replace"))


async def _load(shard: Client) -> bool:
    found = await loaded_library(shard)
    if found and found.is_own:
        return False
    if found and found.is_newer:
        raise NewerLibrary(found)
    try:
        await shard.execute_command("FUNCTION", "LOAD", "REPLACE", library_code())
    except redis_errors.OutOfMemoryError as error:
        raise StoreFull(
            "the memory of Redis is full, so the Functions of this release cannot be loaded",
            hint="raise maxmemory by CONFIG SET; the release that loaded them can also delete memories",
        ) from error
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
