"""Gives all that a namespace holds a vector of another model, through its sidecars, while the present one answers.

What is still to be done is read from the records themselves, so it may be stopped at any moment and begun again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memory_core.errors import EmbeddingUnavailable, Tampered
from memory_core.records.agent import load_agents, profile_vector
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.task import load_tasks, load_vectors
from memory_core.records.vectors import to_bytes
from memory_core.redis_client import Client
from memory_core.store import sidecar
from memory_server.agents.registry import self_description
from memory_server.engine.backend import Backend
from memory_server.engine.embeddings import Embeddings
from memory_server.engine.request import Caller
from memory_server.index import loader
from memory_server.index import queries as candidates
from memory_server.index import query as build
from memory_server.index.loader import Ref
from memory_server.operations.quarantine import CONSOLE
from memory_server.operations.sweeper import queue_jobs
from memory_server.service import Service

Tell = Callable[[str, int, int], None]
"""Told the stage, how much is done, and of how much."""
AT_ONCE = 2000
"""Texts that wait for their vectors at a time."""
_SLICE = 100
_TRIES = 2
"""A piece may be changed between its loading and its job, which is stale then."""
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
"""How long no sidecar of the model may live before it is given up."""
_TEXTS_AT_ONCE = 32
_MOST_TASKS = 10_000
_EMBED_SECONDS = 30.0


@dataclass(slots=True)
class Filling:
    """One walk over the pieces that have no vector of a model. `asked` counts them, `failed` are those that no sidecar
    could embed, `unreadable` those that are gone or not to be believed.
    """

    service: Service
    namespace: str
    model: Model
    tell: Tell
    asked: int = 0
    failed: list[Ref] = field(default_factory=list[Ref])
    unreadable: set[Ref] = field(default_factory=set[Ref])
    _tries: Counter[Ref] = field(default_factory=Counter[Ref])
    _alive_at: float = 0.0

    async def run(self) -> Filling:
        """Go on until all that was there has its vector. What is stored meanwhile brings its own job.

        Raises:
            EmbeddingUnavailable: no sidecar of the model lives. KeyMissing: there are sensitive memories, and no
            master key.
        """
        seconds, microseconds = await self.service.backend.read(lambda client: client.time())
        query = build.not_embedded(self.model, seconds + microseconds / 1e6)
        await self._tell()
        while records := await self._next(query):
            await self._ask(records)
            await self._until_done()
            await self._tell()
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

        async def fetch(client: Client) -> list[Ref]:
            return await candidates.some(client, keys, query, limit=limit, timeout_ms=timeout)

        return await self.service.namespaces.search(self.namespace, fetch)

    async def _load(self, refs: Sequence[Ref]) -> list[Record]:
        keys, opened = Keys(self.namespace), list[Record]()
        for start in range(0, len(refs), _SLICE):
            part = refs[start : start + _SLICE]

            async def fetch(client: Client, part: Sequence[Ref] = part) -> list[Record]:
                return await loader.load(client, keys, part, self.service.backend.integrity)

            for record in await self.service.backend.read(fetch):
                try:
                    opened.append(await self.service.vault.open(self.namespace, record))
                except Tampered:
                    continue
        return opened

    async def _ask(self, records: Sequence[Record]) -> None:
        for start in range(0, len(records), _SLICE):
            part = records[start : start + _SLICE]
            self.asked += await queue_jobs(self.service, self.namespace, part, self.model)
            self._tries.update(Ref(record.id, record.part) for record in part)

    async def _until_done(self) -> None:
        """Wait until no job is left of those that are queued now."""
        stream = Keys(self.namespace).jobs(self.model.name)
        newest = await self.service.backend.read(lambda client: client.xrevrange(stream, count=1))
        while newest:
            oldest = await self.service.backend.read(lambda client: client.xrange(stream, count=1))
            if not oldest or _order(oldest[0][0]) > _order(newest[0][0]):
                return
            await self._check_alive()
            await asyncio.sleep(_POLL_SECONDS)

    async def _check_alive(self) -> None:
        """Look now and then whether somebody works.

        Raises:
            EmbeddingUnavailable: for too long nobody did.
        """
        if time.monotonic() - self._alive_at < sidecar.HEARTBEAT_SECONDS:
            return
        if await sidecars_of(self.service.backend, self.model.name) or not self._alive_at:
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > _PATIENCE_SECONDS:
            raise no_sidecar(self.model.name)

    async def _tell(self) -> None:
        keys, timeout = Keys(self.namespace), self.service.settings.search_timeout_ms
        queries = [build.with_vector(build.Query(), self.model), build.everything()]
        counts = await self.service.namespaces.search(
            self.namespace, lambda client: candidates.count_all(client, keys, queries, timeout)
        )
        self.tell("embedding", *counts)


async def sidecars_of(backend: Backend, model: str) -> list[sidecar.SidecarStatus]:
    """Find the living sidecars of a model."""
    return [one for one in await backend.read(sidecar.living) if one.model == model]


def no_sidecar(model: str) -> EmbeddingUnavailable:
    """Say what is missing, and that nothing is lost."""
    return EmbeddingUnavailable(
        f"no embedding sidecar for {model} is alive",
        hint=f"start one beside the others: redis-memory-embedder --model {model}; then run this again, it goes on",
        retry_after=5.0,
    )


async def embed_tasks(service: Service, namespace: str, model: Model, other: Model) -> None:
    """Give open tasks that have a vector of another model one of this: tasks that say the same are told by it."""
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    ids = await service.namespaces.search(
        namespace, lambda client: candidates.open_tasks(client, keys, other, limit=_MOST_TASKS, timeout_ms=timeout)
    )
    known = await service.backend.read(lambda client: load_vectors(client, keys, ids, model)) if ids else []
    lacking = [name for name, vector in zip(ids, known, strict=True) if vector is None]
    for start in range(0, len(lacking), _TEXTS_AT_ONCE):
        part = lacking[start : start + _TEXTS_AT_ONCE]
        tasks = await service.backend.read(lambda client, part=part: load_tasks(client, keys, part))
        vectors = await _embed(service.embeddings, namespace, model, [task.description for task in tasks])
        await service.backend.write(
            "rm1_task_vectors",
            [keys.task_vector(task.id) for task in tasks],
            repeatable=True,
            field=model.field,
            vectors=vectors,
        )


async def embed_agents(service: Service, namespace: str, model: Model) -> None:
    """Give what agents say of themselves a vector of the model that answers. What they completed before counts no more
    for whom later tasks go to.
    """
    keys = Keys(namespace)
    agents = await service.backend.read(lambda client: load_agents(client, keys))
    telling = [agent for agent in agents if self_description(agent.description, agent.capabilities)]
    for start in range(0, len(telling), _TEXTS_AT_ONCE):
        part = telling[start : start + _TEXTS_AT_ONCE]
        texts = [self_description(agent.description, agent.capabilities) for agent in part]
        for agent, vector in zip(part, await _embed(service.embeddings, namespace, model, texts), strict=True):
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
    return [to_bytes(row) for row in rows]


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
