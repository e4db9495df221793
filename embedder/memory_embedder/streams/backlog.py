"""The jobs that a sidecar holds until they are committed, and the queue from which inference takes batches."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass

from memory_core.crypto.sealing import Lock
from memory_core.records.keys import Keys
from memory_core.store.streams import Job
from memory_embedder.engines.encoder import TokenIds, plan_batches
from memory_embedder.streams.throughput import Throughput

MAX_TEXTS = 4096
_LOW_WATER = 0.75
MAX_DELIVERIES = 5
"""A job delivered this often without a result is buried: it moves to the dead letters."""
SUSPECT_DELIVERIES = 3
"""A job delivered this often is embedded alone, because it may be the job that kills sidecars."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedJob:
    """An embed job with its token ids. `deliveries` includes the current delivery.

    `lock` seals the vector of a sensitive text. `since` is when the job was read (for its trace).
    """

    names: Keys
    job: Job
    row: TokenIds
    deliveries: int = 1
    lock: Lock | None = None
    since: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it must be embedded alone."""
        return self.deliveries >= SUSPECT_DELIVERIES


class Backlog:
    """Jobs that wait for inference, oldest first."""

    def __init__(self) -> None:
        self._waiting: list[TokenisedJob] = []
        self._suspects: deque[TokenisedJob] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    @property
    def has_suspects(self) -> bool:
        """Whether a suspect job waits."""
        return bool(self._suspects)

    def add(self, jobs: list[TokenisedJob]) -> None:
        """Append jobs."""
        for job in jobs:
            (self._suspects if job.is_suspect else self._waiting).append(job)

    def pick(self, budget: int) -> list[TokenisedJob]:
        """Take one suspect alone, else the batch with the oldest job, so that long texts do not starve."""
        if self._suspects:
            return [self._suspects.popleft()]
        if not self._waiting:
            return []
        batches = plan_batches([len(job.row) for job in self._waiting], budget)
        chosen = set(next(batch for batch in batches if 0 in batch))
        picked = [self._waiting[position] for position in sorted(chosen)]
        self._waiting = [job for position, job in enumerate(self._waiting) if position not in chosen]
        return picked


class HeldJobs:
    """The stream entries that this sidecar holds, since when, and their total of tokens."""

    def __init__(self, throughput: Throughput) -> None:
        self.tokens = 0
        self._throughput = throughput
        self._held: dict[tuple[str, bytes], tuple[float, int, int]] = {}
        self._mean_tokens = 32.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._held

    @property
    def has_room(self) -> bool:
        """Whether so much is done that reading more jobs is worth a round trip."""
        return self.tokens <= _LOW_WATER * self._throughput.hold and len(self._held) <= _LOW_WATER * MAX_TEXTS

    def add(self, stream: str, entry: bytes, tokens: int, deliveries: int) -> None:
        """Record an entry that was just delivered."""
        self._held[stream, entry] = (time.monotonic(), tokens, deliveries)
        self.tokens += tokens
        self._mean_tokens += 0.01 * (tokens - self._mean_tokens)

    def drop(self, stream: str, entry: bytes) -> None:
        """Remove an entry that is committed, buried, or left for a later delivery."""
        _, tokens, _ = self._held.pop((stream, entry), (0.0, 0, 0))
        self.tokens -= tokens

    def room(self) -> int:
        """How many more texts of average length may be read."""
        return max(0, min(int((self._throughput.hold - self.tokens) / self._mean_tokens), MAX_TEXTS - len(self._held)))

    def older_than(self, seconds: float) -> dict[str, list[bytes]]:
        """Entries that were delivered or renewed at least `seconds` ago, by stream."""
        limit = time.monotonic() - seconds
        found: defaultdict[str, list[bytes]] = defaultdict(list)
        for (stream, entry), (since, _, _) in self._held.items():
            if since <= limit:
                found[stream].append(entry)
        return found

    def by_deliveries(self) -> dict[tuple[str, int], list[bytes]]:
        """All entries, by stream and delivery count."""
        found: defaultdict[tuple[str, int], list[bytes]] = defaultdict(list)
        for (stream, entry), (_, _, deliveries) in self._held.items():
            found[stream, deliveries].append(entry)
        return found

    def renew(self, stream: str, renewed: list[bytes]) -> None:
        """Record that entries were renewed."""
        for entry in renewed:
            if (stream, entry) in self._held:
                self._held[stream, entry] = (time.monotonic(), *self._held[stream, entry][1:])
