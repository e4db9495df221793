"""Loads records as they stand now: what an index said a moment ago is only a hint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import zstandard

from memory_core import grants
from memory_core.connection import Client
from memory_core.integrity import Flaw, Integrity
from memory_core.keys import Keys
from memory_core.names import SEPARATOR
from memory_core.records import CODE_FIELDS, HEAD_FIELDS, LOADED_FIELDS, Record, content_hash, decompress, parse
from memory_core.scope import Principal
from memory_server.search import flaws

_PIECE_FIELDS = ("content", "hash", "model", *CODE_FIELDS)
_Row = Sequence[bytes | None]


class Flawed(NamedTuple):
    """A record that is there and not to be believed, with what it says of its scope and owner."""

    id: str
    flaw: Flaw
    scope: frozenset[str]
    owner: str


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
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    integrity: Integrity,
    *,
    vector_field: str | None = None,
    whole: bool = False,
) -> list[Record]:
    """Load the records of `refs` in their order, leaving out what is gone and what fails its integrity check.

    A further piece comes as its memory's record with the piece's own text and vector, and only while it is of the
    memory's present content. With `whole` the full content takes the place of a long memory's first piece.
    """
    found = await load_all(client, keys, refs, integrity, vector_field=vector_field, whole=whole)
    return [record for record in found if isinstance(record, Record)]


async def load_all(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    integrity: Integrity,
    *,
    vector_field: str | None = None,
    whole: bool = False,
) -> list[Record | Flawed]:
    """Like `load`, with what stands for records that fail their integrity check."""
    if not refs:
        return []
    pipe = client.pipeline(transaction=False)
    _ask(pipe, keys, refs, vector_field, whole)
    return _read(keys, refs, await pipe.execute(), integrity, vector_field, whole)


async def load_readable(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    principal: Principal,
    integrity: Integrity,
    *,
    vector_field: str | None = None,
    whole: bool = False,
) -> list[Record]:
    """Like `load`, leaving out what has expired and what the principal may not see.

    What grants let it read is read again in the same moment as the records: a grant that has ended since the
    principal was resolved shows nothing more. What it could read if it were to be believed is noted in `flaws`.
    """
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
    records: list[Record] = []
    for found in _read(keys, refs, rows, integrity, vector_field, whole):
        if isinstance(found, Record):
            if found.is_live(now) and principal.may_see(found):
                records.append(found)
        elif principal.may_read(found.scope) or principal.owns(found.owner):
            flaws.note(found.id, found.flaw)
    return records


def _ask(pipe: Any, keys: Keys, refs: Sequence[Ref], vector_field: str | None, whole: bool) -> None:
    extra = [*([vector_field] if vector_field else []), *(["body"] if whole else [])]
    for ref in refs:
        pipe.hmget(keys.memory(ref.memory_id), [*LOADED_FIELDS, *extra])
        if ref.piece:
            pipe.hmget(keys.chunk(*ref), [*_PIECE_FIELDS, *([vector_field] if vector_field else [])])


def _read(
    keys: Keys, refs: Sequence[Ref], answers: list[Any], integrity: Integrity, vector_field: str | None, whole: bool
) -> list[Record | Flawed]:
    rows = iter(answers)
    read: list[Record | Flawed] = []
    for ref in refs:
        found = _record(keys.namespace, ref, rows, integrity, vector_field is not None, whole)
        if isinstance(found, Flawed):
            integrity.tell(keys.namespace, found.id, found.flaw)
        if found:
            read.append(found)
    return read


def _record(
    namespace: str, ref: Ref, rows: Iterable[_Row], integrity: Integrity, with_vector: bool, whole: bool
) -> Record | Flawed | None:
    rows = iter(rows)
    values = next(rows)
    row, extra = dict(zip(LOADED_FIELDS, values, strict=False)), values[len(LOADED_FIELDS) :]
    piece = next(rows) if ref.piece else None
    if not any(values[: len(LOADED_FIELDS)]):
        return None
    if flaw := integrity.flaw_of_head(namespace, ref.memory_id, row):
        return _flawed(ref, row, flaw)
    record = parse(ref.memory_id, list(values[: len(HEAD_FIELDS)]), extra[0] if with_vector else None)
    if record is None:
        return None
    record = replace(record, signer=(row["mac_key"] or b"").decode())
    if piece is not None:
        return _piece(namespace, ref, record, row, piece, integrity, with_vector)
    return _with_body(ref, record, row, extra[-1]) if whole and record.pieces > 1 else record


def _flawed(ref: Ref, row: dict[str, bytes | None], flaw: Flaw) -> Flawed:
    scope = (row["scope"] or b"").decode(errors="replace").split(SEPARATOR)
    return Flawed(ref.memory_id, flaw, frozenset(scope), (row["owner"] or b"").decode(errors="replace"))


def _with_body(ref: Ref, record: Record, row: dict[str, bytes | None], body: bytes | None) -> Record | Flawed:
    """Put the whole content into a record: only what has the hash that its code covers."""
    try:
        content = decompress(body or b"")
    except (zstandard.ZstdError, ValueError, KeyError, TypeError):
        return _flawed(ref, row, Flaw.ALTERED)
    if content_hash(content) != record.content_hash:
        return _flawed(ref, row, Flaw.ALTERED)
    return replace(record, content=content)


def _piece(
    namespace: str,
    ref: Ref,
    record: Record,
    head: dict[str, bytes | None],
    values: _Row,
    integrity: Integrity,
    with_vector: bool,
) -> Record | Flawed | None:
    row: dict[str, bytes | None] = dict(zip(_PIECE_FIELDS, values, strict=False))
    text = row["content"]
    if text is None or (row["hash"] or b"").decode(errors="replace") != record.content_hash:
        return None
    if flaw := integrity.flaw_of_piece(namespace, ref.memory_id, ref.piece, record.content_hash, row):
        return _flawed(ref, head, flaw)
    return replace(
        record,
        content=text.decode(errors="replace"),
        model=(row["model"] or b"").decode(errors="replace"),
        vector=values[-1] if with_vector else None,
        part=ref.piece,
    )
