"""Measures embedding, storing and searching of this installation, in its own namespace."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.slices import slices
from memory_core.store import sidecar
from memory_server.contract.arguments import SearchArguments, StoreArguments
from memory_server.contract.untrusted_text import counted
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.memories.store import store_memory
from memory_server.operations.quarantine import purge
from memory_server.search.search import semantic_search
from memory_server.service import Service

NAMESPACE = AGENT = "bench"
_TOPICS = ("the deploy on Fridays", "a leaking pipe", "train times to Graz", "the parser's tests", "a birthday cake")
_STORED_AT_ONCE = 16
_TTL_SECONDS = 600
_VECTOR_SECONDS = 60.0

Progress = Callable[[str, int, int], None]
"""Receives a stage, how much is done and the total."""


class Measurements(BaseModel):
    """The results and the system that they describe. Seconds are wall-clock time."""

    machine: str
    redis: str
    durability: str
    sidecars: list[str]
    model: str
    texts: int
    embedded_per_second: float
    stored_per_second: float
    vectors_ready_seconds: float | None
    searches: int
    search_p50_ms: float
    search_p95_ms: float
    in_namespace: int


@dataclass(frozen=True, slots=True)
class Size:
    """How many texts and searches to measure."""

    texts: int = 200
    searches: int = 50


async def measure(service: Service, size: Size, progress: Progress) -> Measurements:
    """Measure, then delete the stored memories; raises EmbeddingUnavailable if no sidecar answers."""
    caller = Caller(NAMESPACE, AGENT, origin=system_entry(AGENT, "bench")["from"])
    await service.namespaces.get(NAMESPACE)
    texts = [_text(number) for number in range(size.texts)]
    await service.embeddings.embed([_text(-1)], caller, secret=True)
    try:
        embedding_seconds = await _timed(lambda: _embed(service, caller, texts, progress))
        storing_seconds = await _timed(lambda: _store(service, caller, texts, progress))
        ready = await _until_vectors(service, time.perf_counter())
        latencies = [await _search(service, caller, number, size.searches, progress) for number in range(size.searches)]
    finally:
        await purge(service, NAMESPACE, AGENT, 0.0)
    living = await service.backend.read(sidecar.living)
    info = await service.backend.read(lambda client: client.info("server"))
    latencies.sort()
    return Measurements(
        machine=f"{platform.machine()}, {counted(os.cpu_count() or 1, 'core')}, Python {platform.python_version()}",
        redis=str(info["redis_version"]),
        durability=service.backend.durability,
        sidecars=[f"{one.device} by {one.backend} on {one.host}" for one in living],
        model=(await service.models.current(NAMESPACE)).name,
        texts=size.texts,
        embedded_per_second=round(size.texts / embedding_seconds, 1),
        stored_per_second=round(size.texts / storing_seconds, 1),
        vectors_ready_seconds=ready,
        searches=size.searches,
        search_p50_ms=round(latencies[len(latencies) // 2], 1),
        search_p95_ms=round(latencies[int(len(latencies) * 0.95)], 1),
        in_namespace=size.texts,
    )


def _text(number: int) -> str:
    """Return a new text of about 45 words, so that no cache has it."""
    topic = _TOPICS[number % len(_TOPICS)]
    return (
        f"Note {number} of run {secrets.token_hex(4)}: we spoke about {topic}, and agreed that the next one to work on "
        "it writes down what was tried, what the result was and what is still open, before it is forgotten again."
    )


async def _embed(service: Service, caller: Caller, texts: Sequence[str], progress: Progress) -> None:
    """Embed in batches. `secret` bypasses the cache."""
    done = 0
    for part in slices(texts, 64):
        await service.embeddings.embed(part, caller, secret=True)
        done += len(part)
        progress("embedding", done, len(texts))


async def _store(service: Service, caller: Caller, texts: Sequence[str], progress: Progress) -> None:
    waiting, done = iter(texts), 0

    async def work() -> None:
        nonlocal done
        for text in waiting:
            arguments = StoreArguments(content=text, wait=False, ttl_seconds=_TTL_SECONDS)
            await store_memory(service, RequestContext(caller), arguments)
            done += 1
            progress("storing", done, len(texts))

    await asyncio.gather(*(work() for _ in range(_STORED_AT_ONCE)))


async def _until_vectors(service: Service, since: float) -> float | None:
    """Return the seconds until all memories have vectors; None after a minute."""
    jobs = Keys(NAMESPACE).jobs((await service.models.current(NAMESPACE)).name)
    while await service.backend.read(lambda client: client.xlen(jobs)):
        if time.perf_counter() - since > _VECTOR_SECONDS:
            return None
        await asyncio.sleep(0.02)
    return round(time.perf_counter() - since, 2)


async def _search(service: Service, caller: Caller, number: int, total: int, progress: Progress) -> float:
    query = f"what was agreed about {_TOPICS[number % len(_TOPICS)]} in note {number} {secrets.token_hex(2)}"
    seconds = await _timed(lambda: semantic_search(service, RequestContext(caller), SearchArguments(query=query)))
    progress("searching", number + 1, total)
    return seconds * 1000


async def _timed(action: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await action()
    return time.perf_counter() - started
