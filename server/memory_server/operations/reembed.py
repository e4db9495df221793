"""Embeds a namespace's memories, tasks and agents with another model, while the current model answers.

A change of format converts the stored vectors of memories and tasks instead.

Each run reads from the records which vectors are missing, so an interrupted run can be started again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from memory_core.errors import EmbeddingUnavailable, Tampered
from memory_core.records import redis_time
from memory_core.records.agent import load_agents, profile_vector
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.task import load_tasks, load_vectors
from memory_core.records.vectors import from_stored, to_stored
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store import sidecar
from memory_server.agents.registry import self_description
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.embeddings import Embeddings
from memory_server.index import queries as candidates
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref, load
from memory_server.operations.embed_jobs import order_of, queue_jobs, read_jobs
from memory_server.operations.quarantine import CONSOLE
from memory_server.service import Service

Progress = Callable[[str, int, int], None]
"""Receives the stage, how much is done, and the total."""
AT_ONCE = 2000
"""Texts that wait for their vectors at the same time."""
_SLICE = 100
_CONVERTED_AT_ONCE = 4
"""Chunks converted by one Function call: each is inserted into two graphs."""
_TRIES = 2
"""If a chunk changes between its loading and its job, the job is stale."""
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
"""How long to wait without a living sidecar of the model."""
_TEXTS_AT_ONCE = 32
_MOST_TASKS = 10_000
_EMBED_SECONDS = 30.0


@dataclass(slots=True)
class Filling:
    """One pass over the chunks that have no vector of a model.

    `asked` counts the queued chunks. `failed` could not be embedded. `unreadable` are deleted or failed verification.
    """

    service: Service
    namespace: str
    model: Model
    progress: Progress
    asked: int = 0
    failed: list[Ref] = field(default_factory=list[Ref])
    unreadable: set[Ref] = field(default_factory=set[Ref])
    _tries: Counter[Ref] = field(default_factory=Counter[Ref])
    _alive_at: float = 0.0

    async def run(self) -> Filling:
        """Embed all chunks that exist now; later ones bring their own job. Raises EmbeddingUnavailable, KeyMissing."""
        query = build.not_embedded(self.model, await self.service.backend.read(redis_time.ask))
        await self._report()
        while records := await self._next(query):
            await self._queue(records)
            await self._until_done()
            await self._report()
        self.failed = [ref for ref in await self._lacking(query) if ref not in self.unreadable]
        return self

    async def _next(self, query: build.Query) -> list[Record]:
        found: list[Record] = []
        while not found:
            lacking = await self._lacking(query)
            refs = [ref for ref in lacking if ref not in self.unreadable and self._tries[ref] < _TRIES][:AT_ONCE]
            if not refs:
                break
            found = await self._load(refs)
            self.unreadable.update(set(refs) - {Ref(one.id, one.part) for one in found})
        return found

    async def _lacking(self, query: build.Query) -> list[Ref]:
        given_up = len(self.unreadable) + sum(tries >= _TRIES for tries in self._tries.values())
        limit, timeout = AT_ONCE + min(given_up, candidates.MAX_DEPTH), self.service.settings.search_timeout_ms
        keys = Keys(self.namespace)
        return await self.service.namespaces.search(
            self.namespace, lambda client: candidates.some(client, keys, query, limit=limit, timeout_ms=timeout)
        )

    async def _load(self, refs: Sequence[Ref]) -> list[Record]:
        keys, opened, backend = Keys(self.namespace), list[Record](), self.service.backend
        for part in slices(refs, _SLICE):
            for record in await backend.read(lambda client, part=part: load(client, keys, part, backend.integrity)):
                with suppress(Tampered):
                    opened.append(await self.service.vault.open(self.namespace, record))
        return opened

    async def _queue(self, records: Sequence[Record]) -> None:
        for part in slices(records, _SLICE):
            self.asked += await queue_jobs(self.service, self.namespace, part, self.model)
            self._tries.update(Ref(record.id, record.part) for record in part)

    async def _until_done(self) -> None:
        stream = Keys(self.namespace).jobs(self.model.name)
        newest = await self.service.backend.read(lambda client: client.xrevrange(stream, count=1))
        before, since = b"", time.monotonic()
        while newest:
            oldest = await self.service.backend.read(lambda client: client.xrange(stream, count=1))
            if not oldest or order_of(oldest[0][0]) > order_of(newest[0][0]):
                return
            if oldest[0][0] != before:
                before, since = oldest[0][0], time.monotonic()
            elif time.monotonic() - since > _PATIENCE_SECONDS:
                if await self._are_left(stream, newest[0][0]):
                    return
                since = time.monotonic()
            await self._check_alive()
            await asyncio.sleep(_POLL_SECONDS)

    async def _are_left(self, stream: str, newest: bytes) -> bool:
        """Whether no sidecar takes the jobs up to an entry, for example because none has the key that seals them."""
        jobs = await read_jobs(self.service.backend, stream)
        return jobs is not None and all(one.is_left for one in jobs if order_of(one.entry) <= order_of(newest))

    async def _check_alive(self) -> None:
        """Check every few seconds for a living sidecar; raises EmbeddingUnavailable if there was none for too long."""
        if time.monotonic() - self._alive_at < sidecar.HEARTBEAT_SECONDS:
            return
        if await sidecars_of(self.service.backend, self.model.name) or not self._alive_at:
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > _PATIENCE_SECONDS:
            raise no_sidecar(self.model.name)

    async def _report(self) -> None:
        keys, timeout = Keys(self.namespace), self.service.settings.search_timeout_ms
        queries = [build.with_vector(build.Query(), self.model), build.everything()]
        counts = await self.service.namespaces.search(
            self.namespace, lambda client: candidates.count_all(client, keys, queries, timeout)
        )
        self.progress("embedding", *counts)


async def sidecars_of(backend: Backend, model: str) -> list[sidecar.SidecarStatus]:
    """Return the living sidecars of a model."""
    return [one for one in await backend.read(sidecar.living) if one.model == model]


def no_sidecar(model: str) -> EmbeddingUnavailable:
    """Make the error for a model without a living sidecar."""
    return EmbeddingUnavailable(
        f"no embedding sidecar for {model} is alive",
        hint=f"start one in addition: redis-memory-embedder --model {model}; then run this again to continue",
        retry_after=5.0,
    )


async def convert(service: Service, namespace: str, source: Model, target: Model, progress: Progress) -> None:
    """Add the vectors of a model in the target's format. Chunks without a valid vector are left to be embedded."""
    keys, query, timeout = Keys(namespace), build.other_format(source, target), service.settings.search_timeout_ms
    seen, refused = set[Ref](), set[Ref]()

    async def fetch(client: Client) -> tuple[list[Ref], list[int]]:
        limit = AT_ONCE + min(len(refused), candidates.MAX_DEPTH)
        queries = [build.with_vector(build.Query(), target), build.everything()]
        counts = await candidates.count_all(client, keys, queries, timeout)
        return await candidates.some(client, keys, query, limit=limit, timeout_ms=timeout), counts

    while True:
        refs, counts = await service.namespaces.search(namespace, fetch)
        progress("converting", *counts)
        refused |= seen.intersection(refs)
        refs = [ref for ref in refs if ref not in refused]
        if not refs:
            return
        for part in slices(refs, _CONVERTED_AT_ONCE):
            names = [keys.hash_of_chunk(ref.memory_id, ref.chunk) for ref in part]
            await service.backend.write("rm1_convert_vectors", names, repeatable=True, model=target.name)
        seen.update(refs)


async def embed_tasks(service: Service, namespace: str, model: Model, other: Model) -> None:
    """Embed or convert open tasks that have only the other vector. Vectors find tasks with a similar description."""
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    ids = await service.namespaces.search(
        namespace, lambda client: candidates.open_tasks(client, keys, other, limit=_MOST_TASKS, timeout_ms=timeout)
    )
    known = await service.backend.read(lambda client: load_vectors(client, keys, ids, model)) if ids else []
    lacking = [name for name, vector in zip(ids, known, strict=True) if vector is None]
    for part in slices(lacking, _TEXTS_AT_ONCE):
        vectors = await _task_vectors(service, keys, part, model, other)
        await service.backend.write(
            "rm1_task_vectors",
            [keys.task_vector(task_id) for task_id in vectors],
            repeatable=True,
            field=model.field,
            vectors=list(vectors.values()),
        )


async def _task_vectors(
    service: Service, keys: Keys, ids: Sequence[str], model: Model, other: Model
) -> dict[str, bytes]:
    """Return vectors by task id: embedded, or converted if only the format differs."""
    if model.name == other.name:
        found = await service.backend.read(lambda client: load_vectors(client, keys, ids, other))
        pairs = [(name, vector) for name, vector in zip(ids, found, strict=True) if vector]
        return {name: to_stored(from_stored(vector, model.dimension), model) for name, vector in pairs}
    tasks = await service.backend.read(lambda client: load_tasks(client, keys, ids))
    vectors = await _embed(service.embeddings, keys.namespace, model, [task.description for task in tasks])
    return dict(zip([task.id for task in tasks], vectors, strict=True))


async def embed_agents(service: Service, namespace: str, model: Model) -> None:
    """Embed agents' descriptions of themselves. Tasks completed earlier no longer influence routing."""
    keys = Keys(namespace)
    agents = await service.backend.read(lambda client: load_agents(client, keys))
    described = [(agent, text) for agent in agents if (text := self_description(agent.description, agent.capabilities))]
    for part in slices(described, _TEXTS_AT_ONCE):
        vectors = await _embed(service.embeddings, namespace, model, [text for _, text in part])
        for (agent, _), vector in zip(part, vectors, strict=True):
            await service.backend.write(
                "rm1_agent_vector",
                [keys.agent(agent.name)],
                repeatable=True,
                description=agent.description,
                capabilities=SEPARATOR.join(agent.capabilities),
                profile=profile_vector(model, vector),
            )


async def _embed(embeddings: Embeddings, namespace: str, model: Model, texts: Sequence[str]) -> list[bytes]:
    if not texts:
        return []
    caller = Caller(namespace, CONSOLE)
    rows = await embeddings.embed(texts, caller, model=model, wait=_EMBED_SECONDS, secret=True)
    return [to_stored(row, model) for row in rows]
