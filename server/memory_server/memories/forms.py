"""The forms in which memories are handed to the Functions, shared by storing, changing and settling pieces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memory_core.crypto.keyring import HOW_TO_SET
from memory_core.crypto.sealed_memory import Place, keyed_hash, seal_body, seal_job, seal_text, seal_vector
from memory_core.crypto.sealing import Key
from memory_core.errors import EmbeddingUnavailable, InvalidArgument, KeyMissing, MemoryServiceError, echo
from memory_core.observe import tracing
from memory_core.records.memory import (
    HEAD,
    SEALED,
    SEALED_BODY,
    SEALED_CODEC,
    Priority,
    Record,
    content_hash,
    filter_fields,
    head_fields,
)
from memory_core.records.model import Model
from memory_core.records.scope import record_tokens
from memory_core.records.vectors import Matrix, to_bytes
from memory_core.settings.settings import Settings
from memory_server.engine.embeddings import Embeddings
from memory_server.engine.vector_cache import Asker
from memory_server.memories.services import MemoryServices
from memory_server.search.analysis import extra_terms

_MAX_TTL = 100 * 365 * 86_400
AHEAD_SECONDS = 30.0
EMBED_AT_ONCE = 8
"""Pieces that a waiting store embeds before it writes; longer contents leave jobs."""


def lifetime(settings: Settings, priority: Priority, ttl_seconds: int | None) -> int | None:
    """Seconds that a memory lives; None for ever.

    Raises:
        InvalidArgument: `ttl_seconds` is not positive or beyond a century.
    """
    if ttl_seconds is None:
        return getattr(settings.lifetimes, priority.value)
    if not 1 <= ttl_seconds <= _MAX_TTL:
        raise InvalidArgument(f"ttl_seconds is {echo(ttl_seconds)}; 1 to {_MAX_TTL} are allowed", hint="leave it out")
    return ttl_seconds


def scope_of(record: Record) -> frozenset[str]:
    """Give the tokens that a record must carry."""
    return record_tokens(
        memory_id=record.id,
        owner=record.owner,
        memory_type=record.type,
        visibility=record.visibility,
        tags=record.tags,
        context=record.context,
        sensitive=record.is_sensitive,
    )


class Form:
    """How a memory and its pieces are handed to the Functions: in clear."""

    version: str | None = None
    """Of the data key that it is sealed under."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def content_hash(self, content: str) -> str:
        """Identify a content among its owner's."""
        return content_hash(content)

    def head(self, record: Record, pieces: Sequence[str]) -> dict[str, str | bytes]:
        """Give the fields of a memory's own hash, with the words that Redis would not see by itself."""
        return head_fields(record, pieces) | _terms(pieces[0], record.source)

    def piece(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        """Give the fields of a further piece that its memory has not."""
        return {"content": text, **_terms(text, record.source)}

    def vector(self, record: Record, number: int, vector: Matrix | None) -> dict[str, Any] | None:
        """Give the vector of a piece, shape (dimension,)."""
        if vector is None:
            return None
        return {"bytes": to_bytes(vector), "dimension": self._model.dimension, "model": self._model.name}

    def job(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        """Give the embed job of a piece, queued for each model of which a vector is wanted and lacking."""
        return {"body": embedding_text(text, record.source), "trace": tracing.carrier()}


class SealedForm(Form):
    """How a sensitive memory is handed to them: encrypted under its owner's key, and without words to search for."""

    def __init__(self, service: MemoryServices, namespace: str, key: Key, model: Model) -> None:
        super().__init__(model)
        self.version = key.id
        self._namespace, self._key, self._transports = namespace, key, service.vault.transports

    def content_hash(self, content: str) -> str:
        return keyed_hash(self._key, content)

    def head(self, record: Record, pieces: Sequence[str]) -> dict[str, str | bytes]:
        place = self._place(record, 0)
        fields: dict[str, str | bytes] = {
            **filter_fields(record),
            "part": HEAD,
            "codec": SEALED_CODEC,
            "hash": record.content_hash,
            SEALED: seal_text(self._key, place, pieces[0], record.metadata),
        }
        if len(pieces) > 1:
            fields |= {SEALED_BODY: seal_body(self._key, place, record.content), "pieces": str(len(pieces))}
        return fields

    def piece(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        return {"codec": SEALED_CODEC, SEALED: seal_text(self._key, self._place(record, number), text)}

    def vector(self, record: Record, number: int, vector: Matrix | None) -> dict[str, Any] | None:
        clear = super().vector(record, number, vector)
        if clear is None:
            return None
        lock = self._place(record, number).lock(self._key, "vector")
        return clear | {"bytes": seal_vector(lock, self._model, clear["bytes"]), "sealed": True}

    def job(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        place = self._place(record, number)
        body = embedding_text(text, record.source)
        sealed = seal_job(self._transports, place, body, place.lock(self._key, "vector"))
        return {"trace": tracing.carrier(), **sealed}

    def _place(self, record: Record, piece: int) -> Place:
        return Place.of(self._namespace, record, piece)


async def form_of(service: MemoryServices, namespace: str, record: Record, model: Model) -> Form:
    """Choose the form of a memory, whose vectors are of `model`; the first sensitive one of an owner makes its key.

    Raises:
        KeyMissing: it is sensitive, and this server has no master key. NotFound: its owner was deleted meanwhile.
    """
    if not record.is_sensitive:
        return Form(model)
    return SealedForm(service, namespace, await service.vault.current(namespace, record.owner), model)


def _terms(content: str, source: str | None) -> dict[str, str]:
    """Give the field of words that the Query Engine's tokenizer misses, if there are any."""
    terms = extra_terms(content, source)
    return {"terms": terms} if terms else {}


def flat(fields: Mapping[str, str | bytes]) -> list[str | bytes]:
    """Give fields as HSET takes them."""
    return [part for pair in fields.items() for part in pair]


def signed_elsewhere() -> KeyMissing:
    """Say why nothing can be written without a key where records are signed."""
    return KeyMissing("the records of this namespace are signed, and this server has no key", hint=HOW_TO_SET)


def embedding_text(content: str, source: str | None) -> str:
    """Give what is embedded: the source says who speaks, and short turns mean little without that."""
    return f"{source}: {content}" if source else content


async def embed_or_none(
    service: MemoryServices, record: Record, pieces: Sequence[str], asker: Asker, model: Model, *, wait: bool = True
) -> Matrix | None:
    """Get a vector for each piece: of many, or without `wait`, only if all are cached already.

    None when they are not, or when no sidecar gives them in time. Those of a sensitive memory are never cached.
    """
    texts, secret = [embedding_text(piece, record.source) for piece in pieces], record.is_sensitive
    if not wait or len(pieces) > EMBED_AT_ONCE:
        return None if secret else await service.embeddings.known(texts, asker, model)
    started = time.perf_counter()
    try:
        vectors = await service.embeddings.embed(texts, asker, model=model, secret=secret)
    except EmbeddingUnavailable:
        return None
    service.embedding_latency.add(asker, (time.perf_counter() - started) * 1000)
    return vectors


async def embed_ahead(embeddings: Embeddings, texts: Sequence[str], asker: Asker) -> None:
    """Bring vectors into the cache before many operations want them one by one; failing is no matter."""
    with contextlib.suppress(MemoryServiceError):
        await embeddings.embed(texts, asker, wait=AHEAD_SECONDS)
