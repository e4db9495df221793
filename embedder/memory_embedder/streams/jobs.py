"""Takes its model's embed jobs from the namespaces' streams, commits their vectors, sets hopeless ones aside."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from memory_core import functions, keys, tracing
from memory_core.connection import Client
from memory_core.errors import Tampered
from memory_core.keys import Keys
from memory_core.models import Model
from memory_core.sealed_records import open_job, seal_vector
from memory_core.sealing import Lock, Transports
from memory_core.streams import BadMessage, Job
from memory_core.vectors import Matrix, to_bytes
from memory_embedder.engines.encoder import Encoder, TokenIds
from memory_embedder.streams import groups
from memory_embedder.streams.backlog import MOST_DELIVERIES, SUSPECT_DELIVERIES, Backlog, Holdings, Work
from memory_embedder.streams.outbox import Outbox

_log = logging.getLogger(__name__)
COMMIT_AT_ONCE = 8
"""Each vector is a graph insertion on Redis's one thread; more in one call would stall everybody else."""
VERDICTS = ("ok", "gone", "stale", "bad_vector", "buried")
"""What can come of a job."""
_READ_AT_ONCE = 512
_LOOK_AT_ONCE = 256
_MOST_FOREIGN = 100_000
_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A job that was read, with its text."""

    job: Job
    text: str
    deliveries: int
    lock: Lock | None
    since: int


class JobDesk:
    """Jobs between their stream and their commit."""

    def __init__(
        self,
        client: Client,
        encoder: Encoder,
        holdings: Holdings,
        outbox: Outbox,
        consumer: str,
        arrived: asyncio.Event,
        transports: Transports,
    ) -> None:
        self._client = client
        self._transports = transports
        self._foreign: set[tuple[str, bytes]] = set()
        self._fresh: dict[str, set[bytes]] = {}
        self._encoder = encoder
        self._model = Model(encoder.name, encoder.dimension)
        self._outbox = outbox
        self._consumer = consumer
        self.holdings = holdings
        self.backlog = Backlog()
        self._arrived = arrived
        self.has_room = asyncio.Event()
        self.verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))

    def _jobs(self, names: Keys) -> str:
        return names.jobs(self._encoder.name)

    async def read(self, names: Keys) -> bool:
        """Take new jobs of a namespace, as many as there is room for; False when it has no more."""
        count = min(self.holdings.room(), _READ_AT_ONCE)
        if not count:
            return True
        found = await groups.read(self._client, self._jobs(names), self._consumer, count=count)
        await self._take_in(names, found, {})
        return len(found) == count

    async def recover(self, names: Keys, lease_ms: int) -> bool:
        """Take over jobs that nobody has touched for a lease: of dead sidecars, or failed here.

        Those delivered too often are buried and suspects come one by one. Returns whether more can be taken soon.
        """
        room = min(self.holdings.room(), _LOOK_AT_ONCE)
        if not room:
            return False
        jobs = self._jobs(names)
        idle = await groups.idle_entries(self._client, jobs, idle_ms=lease_ms, count=_LOOK_AT_ONCE)
        free = self._not_held(jobs, idle)
        chosen = _choose(free, room, take_suspect=not self.backlog.has_suspects)
        await self._claim(names, chosen, lease_ms)
        return len(chosen) < len(free) or len(free) == _LOOK_AT_ONCE

    async def take_strays(self, names: Keys) -> None:
        """Take over jobs that are fresh at two looks, a lease apart: Redis's clock was ahead when they were delivered.

        It calls them fresh until it gets there again. Those that somebody holds are renewed between the looks.
        """
        jobs = self._jobs(names)
        fresh = self._not_held(jobs, await groups.fresh_entries(self._client, jobs, count=_LOOK_AT_ONCE))
        before, self._fresh[jobs] = self._fresh.get(jobs, set()), {item.entry for item in fresh}
        strays = [item for item in fresh if item.entry in before]
        room = min(self.holdings.room(), _LOOK_AT_ONCE)
        await self._claim(names, _choose(strays, room, take_suspect=not self.backlog.has_suspects), 0)

    def commit(self, works: Sequence[Work], vectors: Sequence[Matrix]) -> None:
        """Send vectors, each of shape (dimension,), to their memories."""
        by_namespace: defaultdict[Keys, list[tuple[Work, Matrix]]] = defaultdict(list)
        for work, vector in zip(works, vectors, strict=True):
            by_namespace[work.names].append((work, vector))
        for names, pairs in by_namespace.items():
            for start in range(0, len(pairs), COMMIT_AT_ONCE):
                self._outbox.put(partial(self._commit, names, pairs[start : start + COMMIT_AT_ONCE]))

    def fail(self, work: Work, reason: str) -> None:
        """Leave a job for a later delivery, or bury it if it had enough of them."""
        if work.deliveries < MOST_DELIVERIES:
            self._forget(work)
            return
        self._outbox.put(partial(self._bury, work, reason))

    async def keep(self, older_than: float) -> None:
        """Renew the hold on jobs that were taken longer than `older_than` seconds ago."""
        for stream, held in self.holdings.older_than(older_than).items():
            await groups.keep(self._client, stream, self._consumer, held)
            self.holdings.renew(stream, held)

    async def hand_back(self) -> None:
        """Let other sidecars take at once whatever is still held, as if it had not been delivered here."""
        for (stream, deliveries), held in self.holdings.by_deliveries().items():
            await groups.hand_back(self._client, stream, self._consumer, held, deliveries - 1)

    def _not_held(self, jobs: str, found: Sequence[groups.Pending]) -> list[groups.Pending]:
        return [
            item
            for item in found
            if (jobs, item.entry) not in self.holdings and (jobs, item.entry) not in self._foreign
        ]

    async def _claim(self, names: Keys, chosen: Sequence[groups.Pending], idle_ms: int) -> None:
        deliveries = {item.entry: item.deliveries for item in chosen}
        found = await groups.claim(self._client, self._jobs(names), self._consumer, list(deliveries), idle_ms=idle_ms)
        await self._take_in(names, found, deliveries)

    async def _take_in(self, names: Keys, found: list[groups.Entry], earlier: dict[bytes, int]) -> None:
        taken: list[_Taken] = []
        for entry, fields in found:
            deliveries = earlier.get(entry, 0) + 1
            try:
                job = Job.parse(entry, fields)
            except BadMessage:
                await self._bury_unread(names, entry)
                continue
            if job.seal and job.seal not in self._transports:
                await self._leave_to_others(names, entry, deliveries)
                continue
            text, lock, problem = self._read_text(names, job)
            if deliveries > MOST_DELIVERIES:
                problem = f"delivered {deliveries - 1} times without a result"
            if problem:
                self.fail(Work(names, job, _NO_TOKENS, deliveries), problem)
            else:
                taken.append(_Taken(job, text, deliveries, lock, tracing.now() if job.trace else 0))
        if taken:
            await self._tokenise(names, taken)

    async def _leave_to_others(self, names: Keys, entry: bytes, deliveries: int) -> None:
        """Give a job back that is sealed under a key which this sidecar does not hold, as if it had never come here."""
        if not self._foreign:
            _log.warning("sealed jobs are left to sidecars with the transport key; this one lacks MEMORY_TRANSPORT_KEY")
        if len(self._foreign) >= _MOST_FOREIGN:
            self._foreign.clear()
        self._foreign.add((self._jobs(names), entry))
        await groups.hand_back(self._client, self._jobs(names), self._consumer, [entry], deliveries - 1)

    async def _tokenise(self, names: Keys, taken: list[_Taken]) -> None:
        try:
            tokens = await asyncio.to_thread(self._encoder.tokenise, [one.text for one in taken])
        except Exception as error:  # whatever the tokenizer raises
            await self._tokenise_apart(names, taken, type(error).__name__)
            return
        works: list[Work] = []
        for one, row in zip(taken, tokens.rows, strict=True):
            self.holdings.add(self._jobs(names), one.job.entry.encode(), len(row), one.deliveries)
            works.append(Work(names, one.job, row, one.deliveries, one.lock, one.since))
        self.backlog.add(works)
        self._arrived.set()

    async def _tokenise_apart(self, names: Keys, taken: list[_Taken], problem: str) -> None:
        if len(taken) > 1:
            for one in taken:
                await self._tokenise(names, [one])
            return
        self.fail(Work(names, taken[0].job, _NO_TOKENS, taken[0].deliveries), problem)

    def _read_text(self, names: Keys, job: Job) -> tuple[str, Lock | None, str]:
        """Give the text of a job and the lock of its vector, or why it cannot be embedded."""
        if job.model != self._encoder.name:
            return "", None, f"wants another model than {self._encoder.name}"
        try:
            if job.seal:
                return *open_job(self._transports, names.namespace, job), ""
            return job.body.decode(), None, ""
        except UnicodeDecodeError:
            return "", None, "is not UTF-8"
        except Tampered:
            return "", None, "was altered, or is another job's"

    async def _commit(self, names: Keys, pairs: list[tuple[Work, Matrix]]) -> None:
        pieces = [names.piece(work.job.memory_id, work.job.piece) for work, _ in pairs]
        since = tracing.now()
        answer = await functions.call(
            self._client,
            "rm1_commit",
            [self._jobs(names), names.events, *pieces],
            group=keys.GROUP,
            model=self._encoder.name,
            items=[self._item(work, vector) for work, vector in pairs],
        )
        for (work, _), verdict in zip(pairs, answer["verdicts"], strict=True):
            self.verdicts[verdict] += 1
            above = tracing.told("embed_job", work.job.trace, work.since, verdict=verdict, delivery=work.deliveries)
            tracing.told("rm1_commit", above, since, vectors=len(pairs))
            if verdict == "bad_vector":
                await self._bury(work, "the vector was refused")
            else:
                self._forget(work)

    def _item(self, work: Work, vector: Matrix) -> dict[str, object]:
        job = work.job
        return {
            "id": job.memory_id,
            "piece": job.piece,
            "entry": job.entry,
            "rev": job.rev,
            "hash": job.content_hash,
            "dimension": self._encoder.dimension,
            "bytes": to_bytes(vector) if work.lock is None else seal_vector(work.lock, self._model, to_bytes(vector)),
            "sealed": work.lock is not None,
        }

    async def _bury(self, work: Work, reason: str) -> None:
        job = work.job
        await self._bury_entry(work.names, job.entry, job.memory_id, job.rev, reason)
        self._forget(work)

    async def _bury_unread(self, names: Keys, entry: bytes) -> None:
        await self._bury_entry(names, entry.decode(), "", 0, "not a job of a known version")

    async def _bury_entry(self, names: Keys, entry: str, memory_id: str, rev: int, reason: str) -> None:
        _log.warning("a job of namespace %s is buried: %s", names.namespace, reason)
        await functions.call(
            self._client,
            "rm1_bury",
            [self._jobs(names), names.dead_jobs],
            group=keys.GROUP,
            entry=entry,
            id=memory_id,
            rev=rev,
            error=reason,
        )
        self.verdicts["buried"] += 1

    def _forget(self, work: Work) -> None:
        self.holdings.drop(self._jobs(work.names), work.job.entry.encode())
        if self.holdings.has_room:
            self.has_room.set()


def _choose(free: list[groups.Pending], room: int, *, take_suspect: bool) -> list[groups.Pending]:
    """Hopeless and fresh ones as room allows, and one suspect at most."""
    suspects = [item for item in free if SUSPECT_DELIVERIES - 1 <= item.deliveries < MOST_DELIVERIES]
    others = [item for item in free if item not in suspects]
    return others[:room] + (suspects[:1] if take_suspect else [])
