"""Makes of what a file says a memory as it is to be stored, by the same checks as of what agents send."""

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
from memory_server.memories.record_encoder import lifetime, scope_of
from memory_server.service import Service
from memory_server.transfer.exporter import cut_of, place_of
from memory_server.transfer.foreign import Foreign
from memory_server.transfer.lines import Header, MemoryLine, from_text
from memory_server.transfer.sealed import FileSeal

_RANDOM_BYTES = 10
_UNIT = 1e-2


@dataclass(frozen=True, slots=True)
class Arrival:
    """A memory on its way in. `kept` says that it keeps its times and its place; else it gets those of now.

    `vectors` stand for all its pieces, as they were cut where `cut` says so; shape (pieces, dimension). `owners` are
    the owner ids whose memory of this id is taken for it.
    """

    where: str
    record: Record
    owners: tuple[str, ...]
    kept: bool
    expires_at: str | None = None
    ttl: int | None = None
    vectors: Matrix | None = None
    cut: str | None = None

    def same_as(self, rev: int, hash_here: str) -> bool:
        """Whether a memory here is at the same revision, with the same content as far as can be told."""
        return rev == self.record.rev and (self.record.is_sensitive or hash_here == content_hash(self.record.content))

    def fits(self, pieces: Sequence[str]) -> Matrix | None:
        """Give the vectors, if they are of these pieces."""
        if self.vectors is None or len(self.vectors) != len(pieces):
            return None
        return self.vectors if len(pieces) == 1 or self.cut == cut_of(pieces[1:]) else None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person who imports foreign memories says of all of them.

    Without a priority they get `medium` and never expire, as where they come from.
    """

    visibility: Visibility = Visibility.PRIVATE
    priority: Priority | None = None
    tags: tuple[str, ...] = ()
    sensitive: bool = False


def foreign_id(format_name: str, agent: str, source_id: str) -> str:
    """Give the id of a foreign memory, the same whenever this agent imports it: a ULID of the time 0."""
    said = framed(part.encode(errors="surrogatepass") for part in ("import", format_name, agent, source_id))
    return str(ULID.from_bytes(bytes(6) + hashlib.sha256(said).digest()[:_RANDOM_BYTES])).lower()


def from_foreign(settings: Settings, principal: Principal, format_name: str, said: Foreign, wish: Wish) -> Arrival:
    """Make a memory of the agent that imports.

    Raises:
        InvalidArgument: a value is not valid here.
    """
    validation.check_secrecy(wish.sensitive, wish.visibility)
    now = redis_time.now()
    record = Record(
        id=foreign_id(format_name, principal.agent, said.source_id),
        content=validation.check_text(said.content, "content", settings.limits.content_bytes),
        type=said.memory_type,
        priority=wish.priority or Priority.MEDIUM,
        owner=principal.owner or "",
        writer=principal.agent,
        visibility=wish.visibility,
        scope=frozenset(),
        tags=validation.check_tags([*said.tags, *wish.tags], settings),
        context=check_label(said.context, "context") if said.context else None,
        source=check_label(said.source, "source") if said.source else None,
        seq=0,
        occurred_at=said.occurred_at,
        created_at=now,
        updated_at=now,
        expires_at=NEVER,
        rev=1,
        state="",
        metadata=validation.check_metadata(said.metadata, settings),
        codec=SEALED_CODEC if wish.sensitive else "text",
    )
    ttl = lifetime(settings, wish.priority, None) if wish.priority else None
    ends = None if said.expires_at is None else to_redis(said.expires_at)
    owners = principal.owners
    return Arrival(
        said.where, replace(record, scope=scope_of(record, record.owner)), owners, False, expires_at=ends, ttl=ttl
    )


def from_line(service: Service, header: Header, model: Model, where: str, line: MemoryLine) -> Arrival:
    """Make the memory that a line of ours stands for.

    Raises:
        InvalidArgument: a value is not valid here. KeyMissing, Tampered: it is encrypted, and cannot be opened.
    """
    opened = _open(service, line)
    record = Record(
        id=line.id,
        content=validation.check_text(opened.content, "content", service.settings.limits.content_bytes),
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
        metadata=opened.metadata,
        codec=SEALED_CODEC if line.sealed else "text",
    )
    validation.check_secrecy(record.is_sensitive, record.visibility)
    usable = (header.model, header.dimension) == (model.name, model.dimension)
    vectors = _matrix(opened.vectors, model.dimension) if usable and opened.vectors else None
    record = replace(record, scope=scope_of(record, record.owner))
    ends = to_redis(record.expires_at)
    return Arrival(where, record, (line.owner,), True, expires_at=ends, vectors=vectors, cut=opened.cut)


@dataclass(frozen=True, slots=True)
class _Opened:
    content: str
    metadata: str | None
    vectors: list[bytes] | None
    cut: str | None


def _open(service: Service, line: MemoryLine) -> _Opened:
    if (line.content is None) == (line.sealed is None):
        raise InvalidArgument("a memory has either content or sealed")
    if line.sealed is None:
        metadata = validation.check_metadata(line.metadata, service.settings)
        vectors = [base64.b64decode(vector) for vector in line.vectors or ()]
        return _Opened(line.content or "", metadata, vectors or None, line.cut)
    sealed, where = line.sealed, place_of(line.id, line.owner, line.rev)
    seal = FileSeal(service.backend.keyring)
    inside = seal.open(sealed.key, where, sealed.text)
    vectors = [seal.open_vector(sealed.key, where, piece, vector) for piece, vector in enumerate(sealed.vectors or ())]
    return _Opened(inside.content, inside.metadata, vectors or None, inside.cut)


def _matrix(vectors: Sequence[bytes], dimension: int) -> Matrix:
    """Read vectors, which must be whole and of unit length; shape (n, dimension)."""
    if any(len(vector) != 4 * dimension for vector in vectors):
        raise InvalidArgument(f"a vector does not have {dimension} dimensions")
    matrix = np.concatenate([from_bytes(vector, dimension) for vector in vectors])
    if not bool((np.abs(np.square(matrix).sum(axis=1) - 1) < _UNIT).all()):
        raise InvalidArgument("a vector is not of unit length")
    return matrix
