"""Consumes the embed jobs of one model, commits their vectors, and buries jobs that keep failing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from redis import exceptions as redis_errors

from memory_core.crypto.sealed_memory import seal_vector
from memory_core.crypto.sealing import Lock, Transports
from memory_core.errors import Tampered
from memory_core.observe import tracing
from memory_core.records import keys
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.vectors import Matrix, to_stored
from memory_core.redis_client import Client
from memory_core.store import functions
from memory_core.store.sealed_jobs import open_job
from memory_core.store.streams import BadMessage, Job
from memory_embedder.engines.encoder import Encoder, TokenIds
from memory_embedder.streams import groups
from memory_embedder.streams.backlog import MAX_DELIVERIES, SUSPECT_DELIVERIES, Backlog, HeldJobs, TokenisedJob
from memory_embedder.streams.outbox import Outbox

_log = logging.getLogger(__name__)
COMMIT_AT_ONCE = 8
"""Each vector is a graph insertion on Redis's single thread. More in one call would stall other clients."""
VERDICTS = ("ok", "gone", "stale", "bad_vector", "buried")
"""Possible outcomes of a job."""
_READ_AT_ONCE = 512
_SCAN_AT_ONCE = 256
_MAX_UNREADABLE = 100_000
_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _ReadJob:
    """A job that was read, with its text."""

    job: Job
    text: str
    deliveries: int
    lock: Lock | None
    since: int


class JobConsumer:
    """Reads jobs, queues them for inference and commits their vectors."""

    def __init__(
        self,
        client: Client,
        encoder: Encoder,
        held_jobs: HeldJobs,
        outbox: Outbox,
        consumer: str,
        work_arrived: asyncio.Event,
        transports: Transports,
    ) -> None:
        self._client = client
        self._transports = transports
        self._unreadable: set[tuple[str, bytes]] = set()
        self._zero_idle: dict[str, set[bytes]] = {}
        self._encoder = encoder
        self._model = Model(encoder.name, encoder.dimension)
        self._outbox = outbox
        self._consumer = consumer
        self.held_jobs = held_jobs
        self.backlog = Backlog()
        self._work_arrived = work_arrived
        self.has_room = asyncio.Event()
        self.verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))

    def _stream(self, names: Keys) -> str:
        return names.jobs(self._encoder.name)

    async def read(self, names: Keys) -> bool:
        """Read new jobs of a namespace, as many as there is room for. False if it has no more."""
        count = min(self.held_jobs.room(), _READ_AT_ONCE)
        if not count:
            return True
        found = await groups.read(self._client, self._stream(names), self._consumer, count=count)
        await self._accept(names, found, {})
        return len(found) == count

    async def reclaim(self, names: Keys, lease_ms: int) -> bool:
        """Claim jobs that no sidecar has touched for a lease: it died, or the job failed.

        Jobs delivered too often are buried; suspects are claimed one at a time. Returns whether more jobs are left.
        """
        room = min(self.held_jobs.room(), _SCAN_AT_ONCE)
        if not room:
            return False
        stream = self._stream(names)
        idle = await groups.idle_entries(self._client, stream, idle_ms=lease_ms, count=_SCAN_AT_ONCE)
        free = self._not_held(stream, idle)
        chosen = _choose(free, room, take_suspect=not self.backlog.has_suspects)
        await self._claim(names, chosen, lease_ms)
        return len(chosen) < len(free) or len(free) == _SCAN_AT_ONCE

    async def reclaim_skewed(self, names: Keys) -> None:
        """Claim jobs that were idle for 0 ms at two scans, a lease apart.

        They were delivered while Redis's clock was ahead, and their idle time is 0 until it catches up. Jobs that a
        sidecar still holds are renewed between the scans.
        """
        stream = self._stream(names)
        found = self._not_held(stream, await groups.zero_idle_entries(self._client, stream, count=_SCAN_AT_ONCE))
        before, self._zero_idle[stream] = self._zero_idle.get(stream, set()), {item.entry for item in found}
        skewed = [item for item in found if item.entry in before]
        room = min(self.held_jobs.room(), _SCAN_AT_ONCE)
        await self._claim(names, _choose(skewed, room, take_suspect=not self.backlog.has_suspects), 0)

    def commit(self, jobs: Sequence[TokenisedJob], vectors: Sequence[Matrix]) -> None:
        """Write vectors, each of shape (dimension,), to their memories."""
        by_namespace: defaultdict[Keys, list[tuple[TokenisedJob, Matrix]]] = defaultdict(list)
        for job, vector in zip(jobs, vectors, strict=True):
            by_namespace[job.names].append((job, vector))
        for names, pairs in by_namespace.items():
            for start in range(0, len(pairs), COMMIT_AT_ONCE):
                part = pairs[start : start + COMMIT_AT_ONCE]
                self._outbox.put(partial(self._commit, names, part), partial(self._drop_all, [job for job, _ in part]))

    def fail(self, job: TokenisedJob, reason: str, *, text_failed: bool = True) -> None:
        """Leave a job for a later delivery, or bury it after MAX_DELIVERIES.

        Without `text_failed` only the job is bad: its text is not marked, and the server queues another job.
        """
        if job.deliveries < MAX_DELIVERIES:
            self._drop(job)
        else:
            self._outbox.put(partial(self._bury, job, reason, text_failed=text_failed), partial(self._drop, job))

    async def renew(self, older_than: float) -> None:
        """Renew the jobs that were read or renewed more than `older_than` seconds ago."""
        for stream, held in self.held_jobs.older_than(older_than).items():
            await groups.renew(self._client, stream, self._consumer, held)
            self.held_jobs.renew(stream, held)

    async def release(self) -> None:
        """Let other sidecars claim the held jobs now, as if these had not been delivered here."""
        for (stream, deliveries), held in self.held_jobs.by_deliveries().items():
            await groups.release(self._client, stream, self._consumer, held, deliveries - 1)

    def _not_held(self, stream: str, found: Sequence[groups.PendingEntry]) -> list[groups.PendingEntry]:
        return [
            item
            for item in found
            if (stream, item.entry) not in self.held_jobs and (stream, item.entry) not in self._unreadable
        ]

    async def _claim(self, names: Keys, chosen: Sequence[groups.PendingEntry], idle_ms: int) -> None:
        deliveries = {item.entry: item.deliveries for item in chosen}
        found = await groups.claim(self._client, self._stream(names), self._consumer, list(deliveries), idle_ms=idle_ms)
        await self._accept(names, found, deliveries)

    async def _accept(self, names: Keys, found: list[groups.Entry], earlier: dict[bytes, int]) -> None:
        accepted: list[_ReadJob] = []
        for entry, fields in found:
            deliveries = earlier.get(entry, 0) + 1
            try:
                job = Job.parse(entry, fields)
            except BadMessage:
                await self._bury_unread(names, entry)
                continue
            if job.seal and job.seal not in self._transports:
                await self._release_unreadable(names, entry, deliveries)
                continue
            text, lock, problem = self._read_text(names, job)
            if problem:
                self.fail(TokenisedJob(names, job, _NO_TOKENS, deliveries), problem, text_failed=False)
            elif deliveries > MAX_DELIVERIES:
                problem = f"delivered {deliveries - 1} times without a result"
                self.fail(TokenisedJob(names, job, _NO_TOKENS, deliveries), problem)
            else:
                accepted.append(_ReadJob(job, text, deliveries, lock, tracing.now() if job.trace else 0))
        if accepted:
            await self._tokenise(names, accepted)

    async def _release_unreadable(self, names: Keys, entry: bytes, deliveries: int) -> None:
        """Release a job that is sealed under a key this sidecar does not hold, as if it had not been delivered here."""
        if not self._unreadable:
            _log.warning("leaving sealed jobs to sidecars with the transport key; this one lacks MEMORY_TRANSPORT_KEY")
        if len(self._unreadable) >= _MAX_UNREADABLE:
            self._unreadable.clear()
        self._unreadable.add((self._stream(names), entry))
        await groups.release(self._client, self._stream(names), self._consumer, [entry], deliveries - 1)

    async def _tokenise(self, names: Keys, jobs: list[_ReadJob]) -> None:
        try:
            tokens = await asyncio.to_thread(self._encoder.tokenise, [job.text for job in jobs])
        except Exception as error:  # tokenizers have no common error type
            await self._tokenise_apart(names, jobs, type(error).__name__)
            return
        tokenised: list[TokenisedJob] = []
        for one, row in zip(jobs, tokens.rows, strict=True):
            self.held_jobs.add(self._stream(names), one.job.entry.encode(), len(row), one.deliveries)
            tokenised.append(TokenisedJob(names, one.job, row, one.deliveries, one.lock, one.since))
        self.backlog.add(tokenised)
        self._work_arrived.set()

    async def _tokenise_apart(self, names: Keys, jobs: list[_ReadJob], problem: str) -> None:
        """Find the job that cannot be tokenised, so that it does not fail the others."""
        if len(jobs) > 1:
            for one in jobs:
                await self._tokenise(names, [one])
            return
        self.fail(TokenisedJob(names, jobs[0].job, _NO_TOKENS, jobs[0].deliveries), problem)

    def _read_text(self, names: Keys, job: Job) -> tuple[str, Lock | None, str]:
        """The text of a job, the lock for its vector, and why it cannot be embedded (empty if it can)."""
        if job.model != self._encoder.name:
            return "", None, f"needs another model than {self._encoder.name}"
        try:
            if job.seal:
                return *open_job(self._transports, names.namespace, job), ""
            return job.body.decode(), None, ""
        except UnicodeDecodeError:
            return "", None, "is not UTF-8"
        except Tampered:
            return "", None, "was altered, or belongs to another job"

    async def _commit(self, names: Keys, pairs: list[tuple[TokenisedJob, Matrix]]) -> None:
        pieces = [names.hash_of_chunk(done.job.memory_id, done.job.chunk) for done, _ in pairs]
        since, items = tracing.now(), [self._item(done, vector) for done, vector in pairs]
        try:
            answer = await functions.call(
                self._client,
                "rm1_commit",
                [self._stream(names), names.events, *pieces],
                group=keys.GROUP,
                model=self._encoder.name,
                items=items,
            )
        except redis_errors.OutOfMemoryError:
            await self._drop_pointless(names, pieces, items)
            raise
        for (done, _), verdict in zip(pairs, answer["verdicts"], strict=True):
            self.verdicts[verdict] += 1
            above = tracing.record_span(
                "embed_job", done.job.trace, done.since, verdict=verdict, delivery=done.deliveries
            )
            tracing.record_span("rm1_commit", above, since, vectors=len(pairs))
            if verdict == "bad_vector":
                await self._bury(done, "the vector was refused")
            else:
                self._drop(done)

    async def _drop_pointless(self, names: Keys, pieces: list[str], items: list[dict[str, object]]) -> None:
        """Acknowledge the jobs of memories that are gone or have changed, which a full Redis allows."""
        jobs = [{name: item[name] for name in ("entry", "rev", "hash")} for item in items]
        await functions.call(
            self._client, "rm1_drop_jobs", [self._stream(names), *pieces], group=keys.GROUP, items=jobs
        )

    def _item(self, done: TokenisedJob, vector: Matrix) -> dict[str, object]:
        job, data = done.job, to_stored(vector, replace(self._model, half=done.job.half))
        return {
            "id": job.memory_id,
            "piece": job.chunk,
            "entry": job.entry,
            "rev": job.rev,
            "hash": job.content_hash,
            "dimension": self._encoder.dimension,
            "bytes": data if done.lock is None else seal_vector(done.lock, self._model, data),
            "sealed": done.lock is not None,
        }

    async def _bury(self, done: TokenisedJob, reason: str, *, text_failed: bool = True) -> None:
        job = done.job
        failed = [done.names.hash_of_chunk(job.memory_id, job.chunk)] if text_failed else []
        what = {"id": job.memory_id, "rev": job.rev, "hash": job.content_hash, "model": job.model}
        await self._bury_entry(done.names, job.entry, reason, failed, **what)
        self._drop(done)

    async def _bury_unread(self, names: Keys, entry: bytes) -> None:
        await self._bury_entry(names, entry.decode(), "not a job of a known version", [], id="", rev=0)

    async def _bury_entry(self, names: Keys, entry: str, reason: str, failed: list[str], **job: str | int) -> None:
        _log.warning("buried a job of namespace %s: %s", names.namespace, reason)
        jobs, group = [self._stream(names), names.dead_jobs], keys.GROUP
        await functions.call(self._client, "rm1_bury", [*jobs, *failed], group=group, entry=entry, error=reason, **job)
        self.verdicts["buried"] += 1

    def _drop_all(self, jobs: Sequence[TokenisedJob]) -> None:
        for job in jobs:
            self._drop(job)

    def _drop(self, job: TokenisedJob) -> None:
        self.held_jobs.drop(self._stream(job.names), job.job.entry.encode())
        if self.held_jobs.has_room:
            self.has_room.set()


def _choose(free: list[groups.PendingEntry], room: int, *, take_suspect: bool) -> list[groups.PendingEntry]:
    """Choose jobs that are not suspect as room allows, and at most one suspect."""
    suspects = [item for item in free if SUSPECT_DELIVERIES - 1 <= item.deliveries < MAX_DELIVERIES]
    others = [item for item in free if item not in suspects]
    return others[:room] + (suspects[:1] if take_suspect else [])
