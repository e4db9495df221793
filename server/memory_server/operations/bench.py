"""A short check of how fast this very installation is: embedding, storing and searching, in a namespace of its own."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from memory_core.records import sidecar
from memory_core.records.audit_entry import by_itself
from memory_core.records.sidecar import SidecarStatus
from memory_server.contract.arguments import SearchArguments, StoreArguments
from memory_server.engine.embeddings import Embeddings
from memory_server.engine.request import Caller, RequestContext
from memory_server.memories.store import store_memory
from memory_server.operations.quarantine import purge
from memory_server.search.search import semantic_search
from memory_server.service import Service

NAMESPACE = AGENT = "bench"
_TOPICS = ("the deploy on Fridays", "a leaking pipe", "train times to Graz", "the parser's tests", "a birthday cake")
_STORED_AT_ONCE = 16
_TTL_SECONDS = 600
_VECTOR_SECONDS = 60.0


class Measured(BaseModel):
    """What was measured, on what. Seconds are wall-clock seconds of this run."""

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
    """How much is measured."""

    texts: int = 200
    searches: int = 50


async def measure(service: Service, size: Size, tell: Callable[[str, int, int], None]) -> Measured:
    """Measure, and remove what was stored for it. `tell` is told of each stage how far it has come.

    Raises:
        EmbeddingUnavailable: no sidecar gives vectors.
    """
    caller = Caller(NAMESPACE, AGENT, origin=by_itself(AGENT, "bench")["from"])
    await service.namespaces.get(NAMESPACE)
    texts = [_text(number) for number in range(size.texts)]
    await service.embeddings.embed([_text(-1)], caller, secret=True)
    try:
        embedding = await _timed(lambda: _embed(service.embeddings, caller, texts, tell))
        storing = await _timed(lambda: _store(service, caller, texts, tell))
        ready = await _until_vectors(service, time.perf_counter())
        found = [await _search(service, caller, number, size.searches, tell) for number in range(size.searches)]
    finally:
        await purge(service, NAMESPACE, AGENT, 0.0)
    living = await service.backend.read(sidecar.living)
    info = await service.backend.read(lambda client: client.info("server"))
    took = sorted(found)
    return Measured(
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        redis=str(info["redis_version"]),
        durability=service.backend.durability,
        sidecars=[_described(one) for one in living],
        model=(await service.models.current(NAMESPACE)).name,
        texts=size.texts,
        embedded_per_second=round(size.texts / embedding, 1),
        stored_per_second=round(size.texts / storing, 1),
        vectors_ready_seconds=ready,
        searches=size.searches,
        search_p50_ms=round(took[len(took) // 2], 1),
        search_p95_ms=round(took[int(len(took) * 0.95)], 1),
        in_namespace=size.texts,
    )


def _text(number: int) -> str:
    """Make a text of some thirty words that no cache knows."""
    topic = _TOPICS[number % len(_TOPICS)]
    return (
        f"Note {number} of run {secrets.token_hex(4)}: we spoke about {topic}, and agreed that whoever comes to it "
        "next writes down what was tried, what came of it and what is still open, before it is forgotten again."
    )


async def _embed(
    embeddings: Embeddings, caller: Caller, texts: Sequence[str], tell: Callable[[str, int, int], None]
) -> None:
    """Embed as many at a time as a batch holds; `secret` keeps the cache out of it."""
    for start in range(0, len(texts), 64):
        await embeddings.embed(texts[start : start + 64], caller, secret=True)
        tell("embedding", min(start + 64, len(texts)), len(texts))


async def _store(service: Service, caller: Caller, texts: Sequence[str], tell: Callable[[str, int, int], None]) -> None:
    """Store one by one, some at a time, without waiting for vectors."""
    waiting, done = iter(texts), 0

    async def work() -> None:
        nonlocal done
        for text in waiting:
            await store_memory(
                service, RequestContext(caller), StoreArguments(content=text, wait=False, ttl_seconds=_TTL_SECONDS)
            )
            done += 1
            tell("storing", done, len(texts))

    await asyncio.gather(*(work() for _ in range(_STORED_AT_ONCE)))


async def _until_vectors(service: Service, since: float) -> float | None:
    """Give the seconds until sidecars had filled all vectors; None if that took too long."""
    from memory_core.records.keys import Keys

    jobs = Keys(NAMESPACE).jobs((await service.models.current(NAMESPACE)).name)
    while await service.backend.read(lambda client: client.xlen(jobs)):
        if time.perf_counter() - since > _VECTOR_SECONDS:
            return None
        await asyncio.sleep(0.02)
    return round(time.perf_counter() - since, 2)


async def _search(
    service: Service, caller: Caller, number: int, total: int, tell: Callable[[str, int, int], None]
) -> float:
    """Search once for what was not asked before; give the milliseconds."""
    query = f"what was agreed about {_TOPICS[number % len(_TOPICS)]} in note {number} {secrets.token_hex(2)}"
    seconds = await _timed(lambda: semantic_search(service, RequestContext(caller), SearchArguments(query=query)))
    tell("searching", number + 1, total)
    return seconds * 1000


async def _timed(action: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await action()
    return time.perf_counter() - started


def _described(one: SidecarStatus) -> str:
    return f"{one.device} by {one.backend} on {one.host}"
