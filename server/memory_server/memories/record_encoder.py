"""Encodes memories and their chunks for the Functions: in clear, or encrypted where they are sensitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory_core.crypto.keyring import HOW_TO_SET
from memory_core.crypto.sealed_memory import Binding, keyed_hash, seal_body, seal_text, seal_vector
from memory_core.crypto.sealing import Key
from memory_core.errors import InvalidArgument, KeyMissing, echo
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
from memory_core.settings.settings import Settings
from memory_core.store.sealed_jobs import seal_job
from memory_server.memories.services import MemoryServices
from memory_server.search.analysis import extra_terms

_MAX_TTL = 100 * 365 * 86_400


class RecordEncoder:
    """Encodes a memory and its chunks in clear."""

    key_version: str | None = None
    """Version of the data key that seals the memory."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def content_hash(self, content: str) -> str:
        """Return a hash that is equal for equal contents of one owner."""
        return content_hash(content)

    def head(self, record: Record, chunks: Sequence[str]) -> dict[str, str | bytes]:
        """Return the fields of a memory's own hash, with the words that Redis's tokenizer misses."""
        return head_fields(record, chunks) | _terms(chunks[0], record.source)

    def chunk(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        """Return the fields of a further chunk that its memory does not share."""
        return {"content": text, **_terms(text, record.source)}

    def vector(self, record: Record, number: int, vector: bytes | None) -> dict[str, Any] | None:
        """Return the vector of a chunk as the Functions take it."""
        if vector is None:
            return None
        return {"bytes": vector, "dimension": self._model.dimension, "model": self._model.name}

    def job(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        """Return the embed job of a chunk; it is queued for each model whose vector is missing."""
        return {"body": embedding_text(text, record.source), "trace": tracing.carrier()}


class SealedRecordEncoder(RecordEncoder):
    """Encrypts a sensitive memory with its owner's key; it stores no searchable words."""

    def __init__(self, service: MemoryServices, namespace: str, key: Key, model: Model) -> None:
        super().__init__(model)
        self.key_version = key.id
        self._namespace, self._key, self._transports = namespace, key, service.vault.transports

    def content_hash(self, content: str) -> str:
        return keyed_hash(self._key, content)

    def head(self, record: Record, chunks: Sequence[str]) -> dict[str, str | bytes]:
        place = Binding.of(self._namespace, record, 0)
        fields: dict[str, str | bytes] = {
            **filter_fields(record),
            "part": HEAD,
            "codec": SEALED_CODEC,
            "hash": record.content_hash,
            SEALED: seal_text(self._key, place, chunks[0], record.metadata),
        }
        if len(chunks) > 1:
            fields |= {SEALED_BODY: seal_body(self._key, place, record.content), "pieces": str(len(chunks))}
        return fields

    def chunk(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        return {"codec": SEALED_CODEC, SEALED: seal_text(self._key, Binding.of(self._namespace, record, number), text)}

    def vector(self, record: Record, number: int, vector: bytes | None) -> dict[str, Any] | None:
        clear = super().vector(record, number, vector)
        if clear is None or vector is None:
            return None
        lock = Binding.of(self._namespace, record, number).lock(self._key, "vector")
        return clear | {"bytes": seal_vector(lock, self._model, vector), "sealed": True}

    def job(self, record: Record, number: int, text: str) -> dict[str, str | bytes]:
        binding, body = Binding.of(self._namespace, record, number), embedding_text(text, record.source)
        sealed = seal_job(self._transports, binding, body, binding.lock(self._key, "vector"))
        return {"trace": tracing.carrier(), **sealed}


async def encoder_of(
    service: MemoryServices, namespace: str, owner: str, model: Model, *, sensitive: bool
) -> RecordEncoder:
    """Return the encoder of an owner's memory. Raises KeyMissing (no master key) or NotFound (the owner is deleted)."""
    if not sensitive:
        return RecordEncoder(model)
    return SealedRecordEncoder(service, namespace, await service.vault.current(namespace, owner), model)


def lifetime(settings: Settings, priority: Priority, ttl_seconds: int | None) -> int | None:
    """Return a memory's lifetime in seconds; None if it never expires. Raises InvalidArgument (bad `ttl_seconds`)."""
    if ttl_seconds is None:
        return getattr(settings.lifetimes, priority.value)
    if not 1 <= ttl_seconds <= _MAX_TTL:
        raise InvalidArgument(f"ttl_seconds is {echo(ttl_seconds)}; 1 to {_MAX_TTL} are allowed", hint="leave it out")
    return ttl_seconds


def scope_of(record: Record, owner: str, readers: Sequence[str] = ()) -> frozenset[str]:
    return record_tokens(
        memory_id=record.id,
        owner=owner,
        memory_type=record.type,
        visibility=record.visibility,
        tags=record.tags,
        context=record.context,
        sensitive=record.is_sensitive,
        readers=readers,
    )


def _terms(content: str, source: str | None) -> dict[str, str]:
    terms = extra_terms(content, source)
    return {"terms": terms} if terms else {}


def flat(fields: Mapping[str, str | bytes]) -> list[str | bytes]:
    """Return fields as HSET takes them."""
    return [part for pair in fields.items() for part in pair]


def signed_elsewhere() -> KeyMissing:
    """Build the error for a write without a key to signed records."""
    return KeyMissing("the records of this namespace are signed, and this server has no key", hint=HOW_TO_SET)


def embedding_text(content: str, source: str | None) -> str:
    """Return the text to embed, with the source: short turns mean little without their speaker."""
    return f"{source}: {content}" if source else content
