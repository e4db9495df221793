"""Loads and verifies current records: index results are only hints."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import zstandard

from memory_core.crypto.integrity import Integrity
from memory_core.records import grant, redis_time
from memory_core.records.authority_codes import IntegrityFailure
from memory_core.records.keys import Keys
from memory_core.records.memory import (
    CODE_FIELDS,
    LOADED_FIELDS,
    SEALED,
    SEALED_BODY,
    Record,
    content_hash,
    decompress,
    parse,
)
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import Principal
from memory_core.records.vectors import to_float32
from memory_core.redis_client import Client
from memory_server.engine.request_context import RequestContext

_CHUNK_FIELDS = ("content", "hash", "model", SEALED, *CODE_FIELDS)
_BODIES = ("body", SEALED_BODY)
_Row = Mapping[str, bytes | None]


class UnverifiedRecord(NamedTuple):
    """A record that failed its integrity check, with the scope and owner that it claims."""

    id: str
    part: int
    failure: IntegrityFailure
    scope: frozenset[str]
    owner: str


class Ref(NamedTuple):
    """A chunk of a memory; chunk 0 is the memory's own hash."""

    memory_id: str
    chunk: int = 0

    @classmethod
    def of_key(cls, keys: Keys, key: str) -> Ref:
        if key.startswith(keys.memory_prefix):
            return cls(key[len(keys.memory_prefix) :])
        memory_id, _, chunk = key[len(keys.chunk_prefix) :].rpartition(":")
        return cls(memory_id, int(chunk))


async def load(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    integrity: Integrity,
    *,
    model: Model | None = None,
    whole: bool = False,
) -> list[Record]:
    """Load valid records of `refs` in their order. A further chunk is its memory's record with its own text.

    `whole` loads the full content of long memories. Sensitive memories stay sealed; `Vault.open` opens them.
    """
    found = await load_all(client, keys, refs, integrity, model=model, whole=whole)
    return [record for record in found if isinstance(record, Record)]


async def load_all(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    integrity: Integrity,
    *,
    model: Model | None = None,
    whole: bool = False,
) -> list[Record | UnverifiedRecord]:
    """Like `load`, with placeholders for records that fail their integrity check."""
    if not refs:
        return []
    reader = RecordReader(keys, integrity, model, whole)
    pipe = client.pipeline(transaction=False)
    reader.ask(pipe, refs)
    return reader.read(refs, await pipe.execute())


async def load_readable(
    client: Client,
    keys: Keys,
    refs: Sequence[Ref],
    request: RequestContext,
    principal: Principal,
    integrity: Integrity,
    *,
    model: Model | None = None,
    whole: bool = False,
) -> list[Record]:
    """Like `load`, without expired and unreadable records; invalid ones go into the request's report.

    Grants are read again in the same transaction, so an ended grant shows nothing. A batch loads each record once.
    """
    reader = RecordReader(keys, integrity, model, whole)

    async def load_some(missing: Sequence[int]) -> dict[Hashable, Record | UnverifiedRecord]:
        some = await _load_readable(client, reader, [refs[position] for position in missing], principal)
        return {(reader, one.id, one.part): one for one in some}

    if request.cache is None:
        found = await _load_readable(client, reader, refs, principal)
    else:
        found = await request.cache.each([(reader, *ref) for ref in refs], load_some)
    for one in found:
        if isinstance(one, UnverifiedRecord):
            request.integrity.add(one.id, one.failure)
    return [one for one in found if isinstance(one, Record)]


async def _load_readable(
    client: Client, reader: RecordReader, refs: Sequence[Ref], principal: Principal
) -> list[Record | UnverifiedRecord]:
    if not refs:
        return []
    pipe = client.pipeline(transaction=bool(principal.grants))
    if principal.grants:
        grant.ask(pipe, reader.keys, principal.agent)
    reader.ask(pipe, refs)
    rows = await pipe.execute()
    if principal.grants:
        answers, who = rows[: grant.COMMANDS], (principal.namespace, principal.agent, principal.admin)
        principal = grant.principal_of(*who, answers, reader.integrity)
        rows = rows[grant.COMMANDS :]
    now = redis_time.now()
    return [one for one in reader.read(refs, rows) if _shows(one, principal, now)]


def _shows(found: Record | UnverifiedRecord, principal: Principal, now: float) -> bool:
    if isinstance(found, Record):
        return found.is_live(now) and principal.may_see(found)
    return principal.may_read(found.scope) or principal.owns(found.owner)


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads the fields of records in a pipeline, builds the records and verifies them."""

    keys: Keys
    integrity: Integrity
    model: Model | None
    whole: bool

    def ask(self, pipe: Any, refs: Sequence[Ref]) -> None:
        """Queue the commands whose answers `read` takes."""
        for ref in refs:
            pipe.hmget(self.keys.memory(ref.memory_id), self.head_fields)
            if ref.chunk:
                pipe.hmget(self.keys.chunk(*ref), self._chunk_fields)

    def read(self, refs: Sequence[Ref], answers: Iterable[Sequence[bytes | None]]) -> list[Record | UnverifiedRecord]:
        """Build records from the answers to `ask`'s commands."""
        rows, head, chunk = iter(answers), self.head_fields, self._chunk_fields
        read: list[Record | UnverifiedRecord] = []
        for ref in refs:
            row = dict(zip(head, next(rows), strict=True))
            found = self._record(ref, row, dict(zip(chunk, next(rows), strict=True)) if ref.chunk else None)
            if isinstance(found, UnverifiedRecord):
                self.integrity.log_failure(self.keys.namespace, found.id, found.failure)
            if found:
                read.append(found)
        return read

    @property
    def head_fields(self) -> tuple[str, ...]:
        """The fields read from a memory's own hash."""
        return _with(LOADED_FIELDS, self.model) + (_BODIES if self.whole else ())

    @property
    def _chunk_fields(self) -> tuple[str, ...]:
        return _with(_CHUNK_FIELDS, self.model)

    def _record(self, ref: Ref, row: _Row, chunk: _Row | None) -> Record | UnverifiedRecord | None:
        if not any(map(row.get, LOADED_FIELDS)):
            return None
        if failure := self.integrity.check_head(self.keys.namespace, ref.memory_id, row):
            return _unverified(ref, row, failure)
        vector = self._vector(row)
        record = parse(ref.memory_id, row, vector)
        if record is None:
            return None
        if chunk is not None:
            return self._chunk(ref, record, row, chunk)
        if record.sealed:
            body = (row[SEALED_BODY] or b"") if self.whole and record.chunks > 1 else None
            vector = self._sealed_vector(record.state, row)
            return replace(record, sealed=replace(record.sealed, body=body, vector=vector, model=self.model))
        return _with_body(ref, record, row) if self.whole and record.chunks > 1 else record

    def _chunk(self, ref: Ref, record: Record, head: _Row, row: _Row) -> Record | UnverifiedRecord | None:
        text = row[SEALED] if record.sealed else row["content"]
        if text is None or (row["hash"] or b"").decode(errors="replace") != record.content_hash:
            return None
        state = (row["model"] or b"").decode(errors="replace")
        if record.sealed:
            vector = self._sealed_vector(state, row)
            sealed = replace(record.sealed, chunk=text, vector=vector, model=self.model)
            return replace(record, state=state, part=ref.chunk, sealed=sealed, vector=None)
        where = (self.keys.namespace, ref.memory_id, ref.chunk, record.content_hash)
        if failure := self.integrity.check_chunk(*where, text, row):
            return _unverified(ref, head, failure)
        content, vector = text.decode(errors="replace"), self._vector(row)
        return replace(record, state=state, part=ref.chunk, content=content, vector=vector)

    def _vector(self, row: _Row) -> bytes | None:
        stored = row[self.model.field] if self.model else None
        return to_float32(stored, self.model.dimension) if self.model and stored is not None else None

    def _sealed_vector(self, state: str, row: _Row) -> bytes | None:
        """Return the sealed vector, b"" if it is missing, so that opening it fails; None if none is expected."""
        return (row[self.model.sealed_field] or b"") if self.model and self.model.is_ready(state) else None


@lru_cache(maxsize=64)
def _with(fields: tuple[str, ...], model: Model | None) -> tuple[str, ...]:
    return (*fields, model.field, model.sealed_field) if model else fields


def _unverified(ref: Ref, row: _Row, failure: IntegrityFailure) -> UnverifiedRecord:
    scope, owner = ((row[name] or b"").decode(errors="replace") for name in ("scope", "owner"))
    return UnverifiedRecord(ref.memory_id, ref.chunk, failure, frozenset(scope.split(SEPARATOR)), owner)


def _with_body(ref: Ref, record: Record, row: _Row) -> Record | UnverifiedRecord:
    try:
        content = decompress(row["body"] or b"")
    except (zstandard.ZstdError, ValueError, KeyError, TypeError):
        content = None
    if content is None or content_hash(content) != record.content_hash:
        return _unverified(ref, row, IntegrityFailure.ALTERED)
    return replace(record, content=content)
