"""Loads records as they stand now: what an index said a moment ago is only a hint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from memory_core import grants
from memory_core.connection import Client
from memory_core.keys import Keys
from memory_core.records import HEAD_FIELDS, SEALED, SEALED_BODY, SEALED_VECTOR, Record, decompress, parse
from memory_core.scope import Principal

_PIECE_FIELDS = ("content", "hash", "model", SEALED)


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
    memory's present content. With `whole` the full content takes the place of a long memory's first piece. Sensitive
    memories come closed; `Vault.open` opens them.
    """
    if not refs:
        return []
    pipe = client.pipeline(transaction=False)
    ask(pipe, keys, refs, vector_field, whole)
    return read(refs, await pipe.execute(), vector_field, whole)


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
    principal was resolved shows nothing more.
    """
    if not refs:
        return []
    pipe = client.pipeline(transaction=bool(principal.grants))
    if principal.grants:
        grants.ask(pipe, keys, principal.agent)
    ask(pipe, keys, refs, vector_field, whole)
    rows = await pipe.execute()
    if principal.grants:
        principal = grants.principal_of(principal.namespace, principal.agent, principal.admin, rows[: grants.COMMANDS])
        rows = rows[grants.COMMANDS :]
    now = time.time()
    records = read(refs, rows, vector_field, whole)
    return [record for record in records if record.is_live(now) and principal.may_read(record.scope)]


def ask(pipe: Any, keys: Keys, refs: Sequence[Ref], vector_field: str | None, whole: bool) -> None:
    """Add to a pipeline what `read` reads."""
    vectors = [vector_field, SEALED_VECTOR] if vector_field else []
    for ref in refs:
        pipe.hmget(keys.memory(ref.memory_id), [*HEAD_FIELDS, *vectors, *(["body", SEALED_BODY] if whole else [])])
        if ref.piece:
            pipe.hmget(keys.chunk(*ref), [*_PIECE_FIELDS, *vectors])


def read(refs: Sequence[Ref], answers: list[Any], vector_field: str | None, whole: bool) -> list[Record]:
    """Make records of the answers to what `load` asks."""
    rows = iter(answers)
    records = (_record(ref, rows, vector_field is not None, whole) for ref in refs)
    return [record for record in records if record]


def _record(ref: Ref, rows: Iterable[list[bytes | None]], with_vector: bool, whole: bool) -> Record | None:
    rows = iter(rows)
    row = next(rows)
    head, extra = row[: len(HEAD_FIELDS)], row[len(HEAD_FIELDS) :]
    vector, sealed_vector = extra[:2] if with_vector else (None, None)
    body, sealed_body = extra[-2:] if whole else (None, None)
    record = parse(ref.memory_id, head, vector)
    if ref.piece:
        return _piece(record, ref.piece, next(rows), with_vector)
    if record and record.sealed:
        wanted = with_vector and record.has_vector
        return replace(
            record,
            sealed=replace(
                record.sealed,
                body=(sealed_body or b"") if whole and record.pieces > 1 else None,
                vector=(sealed_vector or b"") if wanted else None,
            ),
        )
    if record and body:
        return replace(record, content=decompress(body))
    return record


def _piece(record: Record | None, piece: int, row: list[bytes | None], with_vector: bool) -> Record | None:
    content, content_hash, model, sealed, *vectors = row
    if record is None or content_hash is None or content_hash.decode() != record.content_hash:
        return None
    found = replace(record, model=(model or b"").decode(), part=piece)
    if record.sealed:
        vector = (vectors[1] or b"") if with_vector and found.has_vector else None
        return replace(found, sealed=replace(record.sealed, piece=sealed or b"", vector=vector))
    if content is None:
        return None
    return replace(found, content=content.decode(), vector=vectors[0] if with_vector else None)
