"""Loads records as they stand now: what an index said a moment ago is only a hint."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from memory_core import grants
from memory_core.connection import Client
from memory_core.keys import Keys
from memory_core.records import HEAD_FIELDS, Record, decompress, parse
from memory_core.scope import Principal
from memory_server.together import shared

_PIECE_FIELDS = ("content", "hash", "model")


class Ref(NamedTuple):
    """A piece of a memory; piece 0 is the memory's own hash."""

    memory_id: str
    piece: int = 0

    @classmethod
    def of_key(cls, keys: Keys, key: str) -> Ref:
        """Read a key that a search gave."""
        if key.startswith(keys.memory_prefix):
            return cls(key[len(keys.memory_prefix) :])
        memory_id, _, piece = key[len(keys.chunk_prefix) :].rpartition(":")
        return cls(memory_id, int(piece))


async def load(
    client: Client, keys: Keys, refs: Sequence[Ref], *, vector_field: str | None = None, whole: bool = False
) -> list[Record]:
    """Load the records of `refs` in their order, leaving out what is gone.

    A further piece comes as its memory's record with the piece's own text and vector, and only while it is of the
    memory's present content. With `whole` the full content takes the place of a long memory's first piece.
    """
    if not refs:
        return []
    pipe = client.pipeline(transaction=False)
    _ask(pipe, keys, refs, vector_field, whole)
    return _read(refs, await pipe.execute(), vector_field, whole)


async def load_readable(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    principal: Principal,
    *,
    vector_field: str | None = None,
    whole: bool = False,
) -> list[Record]:
    """Like `load`, leaving out what has expired and what the principal may not read.

    What grants let it read is read again in the same moment as the records: a grant that has ended since the
    principal was resolved shows nothing more. Reads of one batch load each record once.
    """
    current = shared()
    if current is None:
        return await _load_readable(client, keys, refs, principal, vector_field, whole)

    async def load_some(missing: Sequence[int]) -> dict[Hashable, Record]:
        wanted = [refs[position] for position in missing]
        records = await _load_readable(client, keys, wanted, principal, vector_field, whole)
        return {(keys, record.id, record.part, vector_field, whole): record for record in records}

    found = await current.each([(keys, *ref, vector_field, whole) for ref in refs], load_some)
    return [record for record in found if record]


async def _load_readable(
    client: Client, keys: Keys, refs: Sequence[Ref], principal: Principal, vector_field: str | None, whole: bool
) -> list[Record]:
    if not refs:
        return []
    pipe = client.pipeline(transaction=bool(principal.grants))
    if principal.grants:
        grants.ask(pipe, keys, principal.agent)
    _ask(pipe, keys, refs, vector_field, whole)
    rows = await pipe.execute()
    if principal.grants:
        principal = grants.principal_of(principal.namespace, principal.agent, principal.admin, rows[: grants.COMMANDS])
        rows = rows[grants.COMMANDS :]
    now = time.time()
    records = _read(refs, rows, vector_field, whole)
    return [record for record in records if record.is_live(now) and principal.may_read(record.scope)]


def _ask(pipe: Any, keys: Keys, refs: Sequence[Ref], vector_field: str | None, whole: bool) -> None:
    # As bytes: redis-py would encode the names again for every record.
    names = [*HEAD_FIELDS, *([vector_field] if vector_field else []), *(["body"] if whole else [])]
    fields = [name.encode() for name in names]
    for ref in refs:
        pipe.hmget(keys.memory(ref.memory_id), fields)
        if ref.piece:
            pipe.hmget(keys.chunk(*ref), [*_PIECE_FIELDS, *([vector_field] if vector_field else [])])


def _read(refs: Sequence[Ref], answers: list[Any], vector_field: str | None, whole: bool) -> list[Record]:
    rows = iter(answers)
    records = (_record(ref, rows, vector_field is not None, whole) for ref in refs)
    return [record for record in records if record]


def _record(ref: Ref, rows: Iterable[list[bytes | None]], with_vector: bool, whole: bool) -> Record | None:
    rows = iter(rows)
    row = next(rows)
    head, extra = row[: len(HEAD_FIELDS)], row[len(HEAD_FIELDS) :]
    record = parse(ref.memory_id, head, extra[0] if with_vector else None)
    if ref.piece:
        return _piece(record, ref.piece, next(rows), with_vector)
    if record and whole and extra[-1]:
        return replace(record, content=decompress(extra[-1]))
    return record


def _piece(record: Record | None, piece: int, row: list[bytes | None], with_vector: bool) -> Record | None:
    content, content_hash, model, *vector = row
    if record is None or content is None or (content_hash or b"").decode() != record.content_hash:
        return None
    return replace(
        record,
        content=content.decode(),
        model=(model or b"").decode(),
        vector=vector[0] if with_vector else None,
        part=piece,
    )
