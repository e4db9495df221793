"""Splits contents into chunks, and updates the chunk records of long memories.

A Function that changes a memory leaves a chore, `<id>:<chunks that may exist>`. `settle` then writes or removes the
chunk records. Any process may settle a chore, even twice; the sweeper settles the ones left behind.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.integrity import Integrity
from memory_core.errors import EmbeddingUnavailable, MemoryServiceError, StoreUnavailable
from memory_core.records.ids import is_id
from memory_core.records.keys import Keys
from memory_core.records.memory import Record, filter_fields
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_stored
from memory_server.engine.integrity_report import tampered
from memory_server.engine.redis_backend import Backend
from memory_server.engine.sidecars.embeddings import Embeddings
from memory_server.engine.sidecars.vector_cache import Asker
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.memories.record_encoder import RecordEncoder, embedding_text, encoder_of, flat, signed_elsewhere
from memory_server.memories.services import MemoryServices
from memory_server.memories.slow_work import in_turn
from memory_server.memories.splitter import Placed, split_stepwise

AHEAD_SECONDS = 30.0
EMBED_AT_ONCE = 8
"""A store that waits for vectors embeds at most so many chunks before it writes; longer contents leave jobs."""
_SLICE = 8  # chunks written by one Function call: each may insert a vector into the graph
_ATTEMPTS = 10
_IN_THREAD = 8_000
_OPTIONAL = ("tags", "context", "source", "occurred_at")


@dataclass(frozen=True, slots=True)
class ChunkedContent:
    """A content in chunks, with vectors of `model`, shape (chunks, dimension), and its `record` if just written."""

    content: str
    chunks: Sequence[str]
    model: Model
    vectors: Matrix | None = None
    record: Record | None = None

    def vector(self, number: int) -> bytes | None:
        return None if self.vectors is None else to_stored(self.vectors[number], self.model)


async def split_content(content: str) -> list[str]:
    """Return the chunks of a content."""
    return [chunk for _, chunk in await place_chunks(content)]


async def starts_of(content: str) -> list[int]:
    """Return where each page from one chunk on begins: the first at the beginning, each other later."""
    starts = [0]
    for start, _ in (await place_chunks(content))[1:]:
        starts.append(min(max(start, starts[-1] + 1), len(content)))
    return starts


async def place_chunks(content: str) -> list[Placed]:
    """Split a content; a long one in a thread, step by step: other calls do not wait, and a cancelled one ends."""
    steps, chunks = split_stepwise(content), list[Placed]()
    if len(content) < _IN_THREAD:
        return [chunk for found in steps for chunk in found]
    while (found := await in_turn(next, steps, None)) is not None:
        chunks += found
    return chunks


async def embed_or_none(
    service: MemoryServices, record: Record, chunks: Sequence[str], asker: Asker, model: Model, *, wait: bool = True
) -> Matrix | None:
    """Return a vector per chunk, or None. Many chunks, or no `wait`: only from the cache; never for sensitive ones."""
    texts, secret = [embedding_text(chunk, record.source) for chunk in chunks], record.is_sensitive
    if not wait or len(chunks) > EMBED_AT_ONCE:
        return None if secret else await service.embeddings.known(texts, asker, model)
    started = time.perf_counter()
    try:
        vectors = await service.embeddings.embed(texts, asker, model=model, secret=secret)
    except EmbeddingUnavailable:
        return None
    service.embedding_latency.add(asker, (time.perf_counter() - started) * 1000)
    return vectors


async def embed_ahead(embeddings: Embeddings, texts: Sequence[str], asker: Asker) -> None:
    """Cache vectors before many operations need them one by one; failures are ignored."""
    with suppress(MemoryServiceError):
        await embeddings.embed(texts, asker, wait=AHEAD_SECONDS)


def parse_chore(chore: bytes) -> tuple[str, str]:
    """Return the memory's id and the whole chore as text; raises ValueError."""
    text = chore.decode()
    memory_id, _, most = text.rpartition(":")
    if not (is_id(memory_id) and most.isdecimal()):
        raise ValueError(f"{text!r} is not an id and a number of chunks")
    return memory_id, text


async def settle(service: MemoryServices, namespace: str, chore: str, content: ChunkedContent | None = None) -> None:
    """Update all chunk records of a memory, or remove them. Raises StoreUnavailable, Tampered or KeyMissing."""
    keys = Keys(namespace)
    memory_id, _, most = chore.rpartition(":")
    for attempt in range(_ATTEMPTS):
        current = content.record if content and not attempt else None
        current = current or await _load_whole(service, keys, memory_id)
        if current and (content is None or content.content != current.content):
            model = await service.models.current(namespace)
            content = ChunkedContent(current.content, await split_content(current.content), model)
        written = current is None or content is None or await _write(service, keys, current, content)
        leftover = range(len(content.chunks) if current and content else 1, int(most))
        if written and await _finish(service.backend, keys, memory_id, current, chore, leftover):
            return
    raise StoreUnavailable("others keep changing the memory", hint="try again", retry_after=0.5)


async def settle_or_tell(
    service: MemoryServices, namespace: str, chore: str, content: ChunkedContent | None = None
) -> str | None:
    """Settle after an acknowledged change. Returns why it failed; the sweeper repairs that."""
    try:
        await settle(service, namespace, chore, content)
    except MemoryServiceError as error:
        return f"the further pieces of a long memory cannot be searched yet: {error.message}"
    return None


async def _load_whole(service: MemoryServices, keys: Keys, memory_id: str) -> Record | None:
    refs, integrity = [Ref(memory_id)], service.backend.integrity
    loaded = await service.backend.read(lambda client: loader.load_all(client, keys, refs, integrity, whole=True))
    found = next(iter(loaded), None)
    if isinstance(found, loader.UnverifiedRecord):
        raise tampered(memory_id, found.failure)
    return await service.vault.open(keys.namespace, found) if found else None


async def _write(service: MemoryServices, keys: Keys, record: Record, content: ChunkedContent) -> bool:
    """Write every further chunk. False if the memory changed meanwhile."""
    shared, chunks = filter_fields(record), content.chunks
    encoder = await encoder_of(service, keys.namespace, record.owner, content.model, sensitive=record.is_sensitive)
    if encoder.key_version and encoder.content_hash(record.content) != record.content_hash:
        # The data key changed: this process read the old one, or the memory is about to be sealed again.
        service.vault.forget(keys.namespace, record.owner)
        return False
    for start in range(1, len(chunks), _SLICE):
        numbers = range(start, min(start + _SLICE, len(chunks)))
        chunk_keys = [keys.chunk(record.id, number) for number in numbers]
        answer = await service.backend.write(
            "rm1_pieces",
            [keys.memory(record.id), keys.job_streams, keys.events, *chunk_keys],
            repeatable=True,
            id=record.id,
            hash=record.content_hash,
            rev=record.rev,
            signed=service.backend.integrity.signs,
            fields=flat(shared),
            remove=[name for name in _OPTIONAL if name not in shared],
            items=[_item(service.backend.integrity, keys, encoder, record, number, content) for number in numbers],
        )
        if answer["status"] == "key_missing":
            raise signed_elsewhere()
        if answer["status"] != "settled":
            return False
    if content.vectors is None and len(chunks) > 1:
        service.ring(keys.namespace)
    return True


def _item(
    integrity: Integrity, keys: Keys, encoder: RecordEncoder, record: Record, number: int, content: ChunkedContent
) -> dict[str, Any]:
    text, code = content.chunks[number], dict[str, str | bytes]()
    if not record.is_sensitive:  # a sealed chunk proves itself
        where = (keys.namespace, record.id, number, record.content_hash)
        code = integrity.sign_chunk(*where, text.encode())
    return {
        "piece": number,
        "code": flat(code),
        "fields": flat(encoder.chunk(record, number, text)),
        "vector": encoder.vector(record, number, content.vector(number)),
        "job": encoder.job(record, number, text),
    }


async def _finish(
    backend: Backend, keys: Keys, memory_id: str, record: Record | None, chore: str, leftover: range
) -> bool:
    """Remove leftover chunks, then the chore. False if the memory changed meanwhile."""
    slices = [leftover[start : start + _SLICE] for start in range(0, len(leftover), _SLICE)] or [range(0)]
    for numbers in slices:
        answer = await backend.write(
            "rm1_settled",
            [keys.chores, keys.memory(memory_id), *(keys.chunk(memory_id, number) for number in numbers)],
            repeatable=True,
            hash=record.content_hash if record else None,
            rev=record.rev if record else None,
            chore=chore,
            done=numbers is slices[-1],
        )
        if answer["status"] == "stale":
            return False
    return True
