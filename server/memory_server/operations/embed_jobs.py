"""Queues embed jobs again for texts that lost theirs, and reads which jobs wait in a stream."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from memory_core.errors import NotFound, Tampered
from memory_core.records import redis_time
from memory_core.records.keys import GROUP, Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store.streams import RELEASED_MS, BadMessage, Job
from memory_server.engine.redis_backend import Backend
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref
from memory_server.memories.record_encoder import encoder_of
from memory_server.service import Service

log = logging.getLogger(__name__)
MOST_JOBS = 1000
"""Longer streams are not read: sidecars are behind, and their jobs are not lost."""
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job in a stream, None if it cannot be parsed.

    `idle_ms` is the time since a sidecar touched it. It is None for an entry that no sidecar holds.
    """

    entry: bytes
    job: Job | None
    was_delivered: bool
    idle_ms: float | None

    @property
    def is_lost(self) -> bool:
        """Whether no sidecar will ever read it: it was delivered, and its group has forgotten it."""
        return self.was_delivered and self.idle_ms is None

    @property
    def is_left(self) -> bool:
        """Whether no sidecar works on it, because it is lost or because all of them released it."""
        return self.is_lost or (self.idle_ms or 0) >= RELEASED_MS

    def is_dead(self, key: str) -> bool:
        """Whether no sidecar can process it, given this server's current transport key (empty if it has none)."""
        is_foreign = self.job is not None and self.job.seal not in {"", key}
        return self.is_lost or (self.is_left and is_foreign and bool(key))


async def recover(service: Service, namespace: str, patience: float) -> None:
    """Queue jobs again for texts that are old enough, wait for their vector and have no job.

    Does nothing while sidecars work on the oldest job. Texts that failed too often are left: an update or `reindex`
    tries them again. Jobs that no sidecar can process are replaced.
    """
    keys, model = Keys(namespace), await service.models.current(namespace)
    stream, current = keys.jobs(model.name), service.backend.transports.current
    oldest = await service.backend.read(lambda client: client.xrange(stream, count=1))
    if oldest and abs(redis_time.now() - order_of(oldest[0][0])[0] / 1000) < patience:
        return
    jobs = await read_jobs(service.backend, stream) if oldest else []
    if jobs is None:
        return
    lost = [one for one in jobs if one.is_dead(current)]
    has_job = {Ref(one.job.memory_id, one.job.chunk) for one in jobs if one.job and not one.is_dead(current)}
    forgotten = await _forgotten(service, namespace, model, has_job, redis_time.now() - patience)
    if lost or forgotten:
        queued = await queue_jobs(service, namespace, forgotten, model, [one.entry.decode() for one in lost])
        log.info("queued %d texts in %s for vectors again, and removed %d jobs", queued, namespace, len(lost))


async def read_jobs(backend: Backend, stream: str) -> list[QueuedJob] | None:
    """Read all jobs of a stream, oldest first; None if there are more than MOST_JOBS."""
    asked = ("XINFO", "STREAM", stream, "FULL", "COUNT", MOST_JOBS)
    found = await backend.read(lambda client: client.execute_command(*asked))
    groups: Sequence[Mapping[bytes, Any]] = found[b"groups"]
    if found[b"length"] > MOST_JOBS or any(group[b"pel-count"] > MOST_JOBS for group in groups):
        return None
    group = next((one for one in groups if one[b"name"] == GROUP.encode()), None)
    last = order_of(group[b"last-delivered-id"]) if group else (0, 0)
    now = redis_time.now() * 1000
    idle = {row[0]: now - row[2] for row in group[b"pending"]} if group else {}
    return [
        QueuedJob(entry, _parse(entry, fields), order_of(entry) <= last, idle.get(entry))
        for entry, fields in found[b"entries"]
    ]


async def queue_jobs(
    service: Service, namespace: str, records: Sequence[Record], model: Model, lost: Sequence[str] = ()
) -> int:
    """Queue jobs for the records that have no vector of a model and are unchanged since; return how many.

    Removes the entries `lost` from the stream.
    """
    keys, items, names = Keys(namespace), list[dict[str, Any]](), list[str]()
    for record in records:
        with suppress(NotFound, Tampered):  # its owner was deleted meanwhile
            encoder = await encoder_of(service, namespace, record.owner, model, sensitive=record.is_sensitive)
            job = encoder.job(record, record.part, record.content)
            read = {"rev": record.own_rev, "hash": record.content_hash}
            items.append({"id": record.id, "piece": record.part, "job": job, **read})
            names.append(keys.hash_of_chunk(record.id, record.part))
    answer = await service.backend.write(
        "rm1_requeue",
        [keys.job_streams, *names],
        repeatable=True,
        group=GROUP,
        model=model.name,
        items=items,
        lost=list(lost),
    )
    service.ring(namespace)
    return answer["queued"]


async def _forgotten(
    service: Service, namespace: str, model: Model, has_job: set[Ref], before: float
) -> Sequence[Record]:
    """Find texts that wait for a vector and have no job. Those that cannot be opened do not hide the others."""
    keys, query, timeout = Keys(namespace), build.unfinished(model), service.settings.search_timeout_ms
    found = await service.namespaces.search(
        namespace, lambda client: queries.some(client, keys, query, limit=2 * MOST_JOBS, timeout_ms=timeout)
    )
    for part in slices([ref for ref in found if ref not in has_job], _AT_ONCE):

        async def fetch(client: Client, part: Sequence[Ref] = part) -> list[Record]:
            return await loader.load(client, keys, part, service.backend.integrity)

        opened = await service.vault.open_all(namespace, await service.backend.read(fetch))
        if forgotten := [record for record in opened.records if record.updated_at < before]:
            return forgotten
    return []


def _parse(entry: bytes, fields: Sequence[bytes]) -> Job | None:
    try:
        return Job.parse(entry, dict(zip(fields[::2], fields[1::2], strict=True)))
    except BadMessage:
        return None


def order_of(entry: bytes) -> tuple[int, int]:
    """Return milliseconds and number of a stream entry's id, which order the entries."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)
