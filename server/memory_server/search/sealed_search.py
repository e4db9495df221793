"""Finds sensitive memories by meaning. Redis never sees their vectors, so the server compares them in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memory_core.crypto.sealed_memory import Binding, open_vector
from memory_core.crypto.sealing import Key, key_id
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.keys import Keys
from memory_core.records.memory import SEALED_CODEC
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, from_stored
from memory_core.redis_client import Client
from memory_server.engine.namespaces import Namespaces
from memory_server.index import queries
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref
from memory_server.search.services import SearchServices
from memory_server.security.decrypted_vectors import Which
from memory_server.security.vault import Opened

_PAGE = 10_000
_SLICE = 1000
_HEAD = ("owner", "rev", "hash", "codec")
_NOTHING = -2.0  # score of a chunk without a vector; below any cosine


@dataclass(frozen=True, slots=True)
class _SealedVector:
    row: int
    which: Which
    binding: Binding
    key: Key
    sealed: bytes


async def nearest_here(
    service: SearchServices,
    namespace: str,
    selected: build.Query,
    vector: Matrix,
    model: Model,
    depth: int,
    timeout_ms: int,
) -> tuple[list[Ref], Opened]:
    """Rank all chunks of a selection that have a vector. Returns the `depth` nearest, and warnings in an `Opened`."""
    chunks = await _chunks(service.namespaces, namespace, build.with_vector(selected, model), model, timeout_ms)
    opened, scores = Opened(), np.full(len(chunks), _NOTHING, dtype=np.float32)
    for start in range(0, len(chunks), _SLICE):
        part = chunks[start : start + _SLICE]
        rows = await _vectors(service, part, model, opened)
        scores[start : start + len(part)] = np.where(np.isnan(rows[:, 0]), _NOTHING, rows @ vector)
        rows.fill(0)
    order = np.argsort(-scores, kind="stable")[:depth]
    return [Ref(chunks[place].memory_id, chunks[place].piece) for place in order if scores[place] > _NOTHING], opened


async def _chunks(
    namespaces: Namespaces, namespace: str, selected: build.Query, model: Model, timeout_ms: int
) -> list[Which]:
    """List the chunks of a selection. A long list is read twice, because writes may shift its pages meanwhile."""
    keys, found = Keys(namespace), dict[Which, None]()
    offset, total, again = 0, 1, False
    while offset < total:

        async def fetch(client: Client, offset: int = offset) -> tuple[list[tuple[Ref, str, str]], int]:
            return await queries.with_content(client, keys, selected, offset=offset, limit=_PAGE, timeout_ms=timeout_ms)

        page, total = await namespaces.search(namespace, fetch)
        found |= {Which(namespace, owner, *ref, content, model.name): None for ref, owner, content in page}
        offset += _PAGE
        if offset >= total > _PAGE and not again:
            offset, again = 0, True
    return list(found)


async def _vectors(service: SearchServices, chunks: Sequence[Which], model: Model, opened: Opened) -> Matrix:
    """Return the vectors of some chunks, shape (chunks, dimension), NaN for missing ones."""
    rows = np.full((len(chunks), model.dimension), np.nan, dtype=np.float32)
    missing = [row for row, which in enumerate(chunks) if not service.vault.vectors.copy(which, rows[row])]
    if not missing:
        return rows
    closed = await _fetch(service, [(row, chunks[row]) for row in missing], model, rows, opened)
    for one in await asyncio.to_thread(_open, closed, model, rows, opened):
        service.vault.vectors.put(one.which, rows[one.row])
    return rows


async def _fetch(
    service: SearchServices, wanted: Sequence[tuple[int, Which]], model: Model, rows: Matrix, opened: Opened
) -> list[_SealedVector]:
    """Read vectors from Redis: clear ones into their rows; the sealed ones are returned."""
    keys = Keys(wanted[0][1].namespace)

    async def fetch(client: Client) -> list[list[bytes | None]]:
        pipe = client.pipeline(transaction=False)
        for _, which in wanted:
            pipe.hmget(keys.hash_of_chunk(which.memory_id, which.piece), [*_HEAD, model.sealed_field, model.field])
        return await pipe.execute()

    closed: list[_SealedVector] = []
    for (row, which), values in zip(wanted, await service.backend.read(fetch), strict=True):
        owner, rev, content, codec, sealed, clear = values
        if codec != SEALED_CODEC.encode() and clear is not None and len(clear) == model.vector_bytes:
            rows[row] = from_stored(clear, model.dimension)
        elif (owner or b"", content or b"") == (which.owner.encode(), which.content_hash.encode()):
            try:
                key = await service.vault.find(which.namespace, which.owner, key_id(sealed or b""))
                binding = Binding(which.namespace, which.owner, *which[2:4], int(rev or 0), which.content_hash)
                closed.append(_SealedVector(row, which, binding, key, sealed or b""))
            except (KeyMissing, Tampered) as error:
                opened.leave_out(error)
    return closed


def _open(closed: Sequence[_SealedVector], model: Model, rows: Matrix, opened: Opened) -> list[_SealedVector]:
    done: list[_SealedVector] = []
    for one in closed:
        try:
            rows[one.row] = np.frombuffer(open_vector(one.key, one.binding, one.sealed, model), "<f4")
            done.append(one)
        except Tampered as error:
            opened.leave_out(error)
    return done
