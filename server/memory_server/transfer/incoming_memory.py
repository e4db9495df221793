"""Makes memories to store from what a file contains, with the same checks as for what agents send."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ulid import ULID

from memory_core.crypto.keyring import framed
from memory_core.errors import InvalidArgument
from memory_core.records import redis_time
from memory_core.records.memory import SEALED_CODEC, Priority, Record, Visibility, content_hash
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import NEVER, to_redis
from memory_core.records.vectors import Matrix, from_bytes
from memory_core.settings.settings import Settings
from memory_server.contract import validation
from memory_server.contract.memories import Secrets
from memory_server.memories.record_encoder import lifetime, scope_of
from memory_server.memories.secrets_policy import apply_policy
from memory_server.service import Service
from memory_server.transfer.export_lines import Header, MemoryLine, from_text
from memory_server.transfer.exporter import binding, chunking_digest
from memory_server.transfer.foreign import Foreign
from memory_server.transfer.sealed import FileSeal, Inside

_RANDOM_BYTES = 10
_NORM_TOLERANCE = 1e-2
_CLOCKS_DIFFER = 300.0
"""Seconds by which the clock of the exporting machine may be ahead."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A memory to import. With `keeps_times` it keeps its times and sequence number; otherwise it gets new ones.

    `vectors` are those of all its chunks, shape (chunks, dimension), if `cut` identifies how it is split. A memory
    with the same id is the same memory if its owner is one of `owners`. `agent` is whose the owner id is.
    """

    record: Record
    owners: tuple[str, ...]
    keeps_times: bool
    expires_at: str | None = None
    ttl: int | None = None
    secrets: Secrets | None = None
    vectors: Matrix | None = None
    cut: str | None = None
    agent: str = ""

    def same_as(self, rev: int, stored_hash: str) -> bool:
        """Whether a stored memory has the same revision, and the same content unless that is sensitive."""
        return rev == self.record.rev and (self.record.is_sensitive or stored_hash == content_hash(self.record.content))

    def vectors_of(self, chunks: Sequence[str]) -> Matrix | None:
        """Return the vectors, if they are those of these chunks."""
        if self.vectors is None or len(self.vectors) != len(chunks):
            return None
        return self.vectors if len(chunks) == 1 or self.cut == chunking_digest(chunks[1:]) else None


@dataclass(frozen=True, slots=True)
class ForeignDefaults:
    """What applies to all foreign memories of an import. Without a priority they get `medium` and never expire."""

    visibility: Visibility = Visibility.PRIVATE
    priority: Priority | None = None
    tags: tuple[str, ...] = ()
    sensitive: bool = False


def foreign_id(format_name: str, agent: str, source_id: str) -> str:
    """Return the id of a foreign memory, a ULID of the time 0: the same each time this agent imports the memory."""
    key = framed(part.encode(errors="surrogatepass") for part in ("import", format_name, agent, source_id))
    return str(ULID.from_bytes(bytes(6) + hashlib.sha256(key).digest()[:_RANDOM_BYTES])).lower()


def from_foreign(
    settings: Settings, principal: Principal, format_name: str, foreign: Foreign, defaults: ForeignDefaults
) -> Arrival:
    """Make a memory of the importing agent; raises InvalidArgument if a value is not valid."""
    now = redis_time.now()
    record = Record(
        id=foreign_id(format_name, principal.agent, foreign.source_id),
        content=validation.check_text(foreign.content, "content", settings.limits.content_bytes),
        type=foreign.memory_type,
        priority=defaults.priority or Priority.MEDIUM,
        owner=principal.owner or "",
        writer=principal.agent,
        visibility=defaults.visibility,
        scope=frozenset(),
        tags=validation.check_tags([*foreign.tags, *defaults.tags], settings),
        context=check_label(foreign.context, "context") if foreign.context else None,
        source=check_label(foreign.source, "source") if foreign.source else None,
        seq=0,
        occurred_at=foreign.occurred_at,
        created_at=now,
        updated_at=now,
        expires_at=NEVER,
        rev=1,
        state="",
        metadata=validation.check_metadata(foreign.metadata, settings),
        codec=SEALED_CODEC if defaults.sensitive else "text",
    )
    record, secrets = apply_policy(record, settings)
    validation.check_secrecy(record.is_sensitive, record.visibility)
    return Arrival(
        replace(record, scope=scope_of(record, record.owner)),
        principal.owners,
        keeps_times=False,
        expires_at=None if foreign.expires_at is None else to_redis(foreign.expires_at),
        ttl=lifetime(settings, defaults.priority, None) if defaults.priority else None,
        secrets=secrets,
        agent=principal.agent,
    )


def from_line(service: Service, header: Header, model: Model, line: MemoryLine, agent: str) -> Arrival:
    """Make the memory of a line of an export; the file gives its owner id to `agent`.

    Raises:
        InvalidArgument: a value is not valid. KeyMissing, Tampered: it is encrypted and cannot be opened.
    """
    inside, vectors = _open(service, line)
    record = Record(
        id=line.id,
        content=validation.check_text(inside.content, "content", service.settings.limits.content_bytes),
        type=line.type,
        priority=line.priority,
        owner=line.owner,
        writer=line.writer,
        visibility=line.visibility,
        scope=frozenset(),
        tags=validation.check_tags(line.tags or (), service.settings),
        context=line.context,
        source=line.source,
        seq=line.seq,
        occurred_at=None if line.occurred_at is None else from_text(line.occurred_at),
        created_at=from_text(line.created_at),
        updated_at=from_text(line.updated_at),
        expires_at=from_text(line.expires_at),
        rev=line.rev,
        state="",
        metadata=inside.metadata,
        codec=SEALED_CODEC if line.sealed else "text",
    )
    validation.check_secrecy(record.is_sensitive, record.visibility)
    if max(record.created_at, record.updated_at) > redis_time.now() + _CLOCKS_DIFFER:
        raise InvalidArgument("created_at or updated_at is in the future", hint="check the clocks of both machines")
    usable = (header.model, header.dimension) == (model.name, model.dimension)
    return Arrival(
        replace(record, scope=scope_of(record, record.owner)),
        (line.owner,),
        keeps_times=True,
        expires_at=to_redis(record.expires_at),
        vectors=_matrix(vectors, model.dimension) if usable and vectors else None,
        cut=inside.cut,
        agent=agent,
    )


def _open(service: Service, line: MemoryLine) -> tuple[Inside, list[bytes]]:
    """Return the content and the vectors of a line."""
    if (line.content is None) == (line.sealed is None):
        raise InvalidArgument("a memory has either content or sealed")
    if line.sealed is None:
        metadata = validation.check_metadata(line.metadata, service.settings)
        vectors = [base64.b64decode(vector) for vector in line.vectors or ()]
        return Inside(line.content or "", metadata, line.cut), vectors
    key, bound_to = line.sealed.key, binding(line.id, line.owner, line.rev)
    seal, vectors = FileSeal(service.backend.keyring), line.sealed.vectors or []
    inside = seal.open(key, bound_to, line.sealed.text)
    return inside, [seal.open_vector(key, bound_to, number, vector) for number, vector in enumerate(vectors)]


def _matrix(vectors: Sequence[bytes], dimension: int) -> Matrix:
    """Decode vectors, which must have unit length, to the shape (n, dimension)."""
    if any(len(vector) != 4 * dimension for vector in vectors):
        raise InvalidArgument(f"a vector does not have {dimension} dimensions")
    matrix = np.concatenate([from_bytes(vector, dimension) for vector in vectors])
    if not bool((np.abs(np.square(matrix).sum(axis=1) - 1) < _NORM_TOLERANCE).all()):
        raise InvalidArgument("a vector is not of unit length")
    return matrix
