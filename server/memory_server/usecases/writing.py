"""The forms in which memories are handed to the Functions, shared by storing, changing and settling pieces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memory_core.errors import EmbeddingUnavailable, InvalidArgument, MemoryServiceError, echo
from memory_core.keys import vector_field
from memory_core.records import Priority, Record, head_fields
from memory_core.scope import record_tokens
from memory_core.vectors import Matrix, to_bytes
from memory_server.caching import Asker
from memory_server.search.analysis import extra_terms
from memory_server.service import Service

_MAX_TTL = 100 * 365 * 86_400
AHEAD_SECONDS = 30.0
EMBED_AT_ONCE = 8
"""Pieces that a waiting store embeds before it writes; longer contents leave jobs."""


def lifetime(service: Service, priority: Priority, ttl_seconds: int | None) -> int | None:
    """Seconds that a memory lives; None for ever.

    Raises:
        InvalidArgument: `ttl_seconds` is not positive or beyond a century.
    """
    if ttl_seconds is None:
        return getattr(service.settings.lifetimes, priority.value)
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
    )


def hash_fields(record: Record, pieces: Sequence[str]) -> list[str | bytes]:
    """Give the fields of a record as HSET takes them, with the words that Redis would not see by itself."""
    return flat(head_fields(record, pieces) | terms_field(pieces[0], record.source))


def terms_field(content: str, source: str | None) -> dict[str, str]:
    """Give the field of words that the Query Engine's tokenizer misses, if there are any."""
    terms = extra_terms(content, source)
    return {"terms": terms} if terms else {}


def flat(fields: Mapping[str, str | bytes]) -> list[str | bytes]:
    """Give fields as HSET takes them."""
    return [part for pair in fields.items() for part in pair]


def vector_part(service: Service, vector: Matrix | None) -> dict[str, Any] | None:
    """Give a vector as the Functions take it."""
    if vector is None:
        return None
    vector_store = service.settings.vector_store
    return {
        "bytes": to_bytes(vector),
        "dimension": vector_store.vector_dimension,
        "field": vector_field(vector_store.embedding_model),
        "model": vector_store.embedding_model,
    }


def job_part(service: Service, content: str, source: str | None) -> dict[str, str]:
    """Give the embed job of a piece, queued where there is no vector."""
    return {"model": service.settings.vector_store.embedding_model, "body": embedding_text(content, source)}


def embedding_text(content: str, source: str | None) -> str:
    """Give what is embedded: the source says who speaks, and short turns mean little without that."""
    return f"{source}: {content}" if source else content


async def embed_or_none(
    service: Service, pieces: Sequence[str], source: str | None, asker: Asker, *, wait: bool = True
) -> Matrix | None:
    """Get a vector for each piece: of many, or without `wait`, only if all are cached already.

    None when they are not, or when no sidecar gives them in time.
    """
    texts = [embedding_text(piece, source) for piece in pieces]
    if not wait or len(pieces) > EMBED_AT_ONCE:
        return await service.embeddings.known(texts, asker)
    started = time.perf_counter()
    try:
        vectors = await service.embeddings.embed(texts, asker)
    except EmbeddingUnavailable:
        return None
    service.embedding_latency.add(asker, (time.perf_counter() - started) * 1000)
    return vectors


async def embed_ahead(service: Service, texts: Sequence[str], asker: Asker) -> None:
    """Bring vectors into the cache before many operations want them one by one; failing is no matter."""
    with contextlib.suppress(MemoryServiceError):
        await service.embeddings.embed(texts, asker, wait=AHEAD_SECONDS)
