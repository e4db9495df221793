"""Holds the jobs taken from the streams until they are committed, and deals them out in batches of like length."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass

from memory_core.keys import Keys
from memory_core.sealing import Lock
from memory_core.streams import Job
from memory_embedder.engines.encoder import TokenIds, plan_batches
from memory_embedder.streams.throughput import Load

MOST_TEXTS = 4096
_LOW_WATER = 0.75
MOST_DELIVERIES = 5
"""A job delivered this often without a result is buried."""
SUSPECT_DELIVERIES = 3
"""A job delivered this often is embedded alone: it may be what kills sidecars, and must not take others along."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One job with its token ids; `deliveries` counts this one. A sensitive text's vector goes under its `lock`.

    `since` is when it was taken, for its trace.
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
    """Work that waits for inference, oldest first."""

    def __init__(self) -> None:
        self._waiting: list[Work] = []
        self._suspects: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    @property
    def has_suspects(self) -> bool:
        """Whether a suspect waits."""
        return bool(self._suspects)

    def add(self, works: list[Work]) -> None:
        """Append work."""
        for work in works:
            (self._suspects if work.is_suspect else self._waiting).append(work)

    def pick(self, budget: int) -> list[Work]:
        """Take a suspect alone, else the batch that holds the oldest work, so that no length starves."""
        if self._suspects:
            return [self._suspects.popleft()]
        if not self._waiting:
            return []
        batches = plan_batches([len(work.row) for work in self._waiting], budget)
        chosen = set(next(batch for batch in batches if 0 in batch))
        picked = [self._waiting[position] for position in sorted(chosen)]
        self._waiting = [work for position, work in enumerate(self._waiting) if position not in chosen]
        return picked


class Holdings:
    """Which stream entries this sidecar holds, since when, and how many tokens they are together."""

    def __init__(self, load: Load) -> None:
        self.tokens = 0
        self._load = load
        self._held: dict[tuple[str, bytes], tuple[float, int, int]] = {}
        self._mean = 32.0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._held

    @property
    def has_room(self) -> bool:
        """Whether enough is done that reading more is worth a round trip."""
        return self.tokens <= _LOW_WATER * self._load.hold and len(self._held) <= _LOW_WATER * MOST_TEXTS

    def add(self, stream: str, entry: bytes, tokens: int, deliveries: int) -> None:
        """Note an entry that was just delivered."""
        self._held[stream, entry] = (time.monotonic(), tokens, deliveries)
        self.tokens += tokens
        self._mean += 0.01 * (tokens - self._mean)

    def drop(self, stream: str, entry: bytes) -> None:
        """Forget an entry: it is settled, or left for a later delivery."""
        _, tokens, _ = self._held.pop((stream, entry), (0.0, 0, 0))
        self.tokens -= tokens

    def room(self) -> int:
        """How many more texts of the usual length to take."""
        return max(0, min(int((self._load.hold - self.tokens) / self._mean), MOST_TEXTS - len(self._held)))

    def older_than(self, seconds: float) -> dict[str, list[bytes]]:
        """Entries by stream that were delivered or renewed at least `seconds` ago."""
        limit = time.monotonic() - seconds
        found: defaultdict[str, list[bytes]] = defaultdict(list)
        for (stream, entry), (since, _, _) in self._held.items():
            if since <= limit:
                found[stream].append(entry)
        return found

    def by_deliveries(self) -> dict[tuple[str, int], list[bytes]]:
        """All entries by stream and number of deliveries."""
        found: defaultdict[tuple[str, int], list[bytes]] = defaultdict(list)
        for (stream, entry), (_, _, deliveries) in self._held.items():
            found[stream, deliveries].append(entry)
        return found

    def renew(self, stream: str, renewed: list[bytes]) -> None:
        """Note that the hold on entries was renewed."""
        for entry in renewed:
            if (stream, entry) in self._held:
                self._held[stream, entry] = (time.monotonic(), *self._held[stream, entry][1:])
