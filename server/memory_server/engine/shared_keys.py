"""The keys outside all namespaces: finds those of another type, and removes them.

The set of namespaces and that of audits are written again from the namespaces that exist.
"""

from __future__ import annotations

from collections.abc import Iterable

from memory_core.records import keys
from memory_core.records.damage import execute
from memory_core.records.keys import Keys
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_core.store import sidecar
from memory_core.store.connection import shards
from memory_server.engine.redis_backend import Backend

_READS = {
    keys.NAMESPACES: "SCARD",
    keys.AUDITED: "SCARD",
    keys.SIDECARS: "ZCARD",
    keys.SWEEPER: "GET",
    keys.LIBRARY_PROOF: "GET",
    keys.SESSION_KEY: "GET",
    **{keys.bell(lane): "XLEN" for lane in range(keys.LANES)},
}
"""The keys of all deployments, each with a command that fails if it is of another type."""
_MEMBERS = {keys.NAMESPACES: Keys("*").meta, keys.AUDITED: Keys("*").audit}
"""The sets of namespaces, each with the pattern of a key that all their members have."""
_KEPT, _KEPT_SECONDS = 1000, 30 * 86_400


async def damaged_shared_keys(client: Client, models: Iterable[str] = ()) -> dict[str, str]:
    """Return the shared keys of another type, each with a command that reads its right type."""
    streams = [make(lane, model) for model in models for lane in range(keys.LANES) for make in (keys.asks, keys.bulk)]
    wanted = _READS | dict.fromkeys(streams, "XLEN")
    pipe = client.pipeline(transaction=False)
    for key, command in wanted.items():
        pipe.execute_command(command, key)
    answers = await execute(pipe)
    return {one: wanted[one] for one, answer in zip(wanted, answers, strict=True) if isinstance(answer, Exception)}


async def repair_shared_keys(backend: Backend) -> None:
    """Remove the shared keys of another type, and report them."""
    await _repair(backend, [])
    living = await backend.read(sidecar.living)
    await _repair(backend, {backend.settings.vector_store.embedding_model, *(one.model for one in living)})


async def _repair(backend: Backend, models: Iterable[str]) -> None:
    for key, command in (await backend.read(lambda client: damaged_shared_keys(client, models))).items():
        members = await backend.read(lambda client, key=key: _existing(client, key))
        await backend.write("rm1_tidy_key", [key], repeatable=True, command=command)
        await backend.read(lambda client, key=key, members=members: _note(client, backend, key, members))


async def _existing(client: Client, key: str) -> list[str]:
    """Return the members that a set of namespaces must have; none for other keys."""
    if key not in _MEMBERS:
        return []
    found = set[bytes]()
    for shard in await shards(client):
        cursor = 0
        while True:
            cursor, page = await shard.scan(cursor, match=_MEMBERS[key], count=1000)
            found.update(keys.namespace_of(name.decode(errors="replace")).encode() for name in page)
            if not cursor:
                break
    return only_names(found)


async def _note(client: Client, backend: Backend, key: str, members: list[str]) -> None:
    """Write a set again. Doctor finds the removal in the stream of the server's own namespace."""
    if members:
        await client.sadd(key, *members)
    damaged = Keys(backend.settings.namespace).damaged
    fields = {"key": key, "entry": "", "why": "the key was of another type"}
    await client.xadd(damaged, fields, maxlen=_KEPT, approximate=True)
    await client.expire(damaged, _KEPT_SECONDS)
