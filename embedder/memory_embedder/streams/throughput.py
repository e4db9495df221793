"""Measures the speed of this sidecar, which decides the batch size, the read-ahead and the heartbeat."""

from __future__ import annotations

import time
from collections import deque

from memory_core.observe.metric_families import Families
from memory_embedder.engines.encoder import MAX_BUDGET, MIN_BUDGET

BATCH_SECONDS = 0.1
"""Target time of one micro-batch. An ask waits for at most one."""
ASKED_BATCH_SECONDS = 0.03
"""Target time within ASKED_SECONDS of an ask, when another ask is likely. Smaller batches waste a little time."""
ASKED_SECONDS = 2.0
HOLD_SECONDS = 2.0
"""Seconds of work that a sidecar takes from the streams. It leaves the rest to other sidecars."""
_FAMILIES = Families("memory_embedder_")
_LEARNING_RATE = 0.3
_WINDOW_SECONDS = 10.0
_TEXT_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Throughput:
    """Padded tokens per second as a moving average, and the texts embedded in the last ten seconds."""

    def __init__(self, tokens_per_second: float = MIN_BUDGET / BATCH_SECONDS) -> None:
        self.tokens_per_second = tokens_per_second
        self.texts_total = 0
        self.asks_total = 0
        self.batch_texts = _FAMILIES.histogram("batch_texts", "Texts per inference.", bounds=_TEXT_BUCKETS)
        self.inference_seconds = _FAMILIES.histogram("inference_seconds", "Duration of one inference.")
        self._done: deque[tuple[float, int]] = deque()
        self._asked_at = -ASKED_SECONDS

    @property
    def budget(self) -> int:
        """Padded tokens of a micro-batch that takes about BATCH_SECONDS, or ASKED_BATCH_SECONDS soon after an ask."""
        seconds = ASKED_BATCH_SECONDS if self.is_asked else BATCH_SECONDS
        return int(min(max(self.tokens_per_second * seconds, MIN_BUDGET), MAX_BUDGET))

    @property
    def is_asked(self) -> bool:
        """Whether an ask was answered in the last ASKED_SECONDS."""
        return time.monotonic() < self._asked_at + ASKED_SECONDS

    def note_ask(self) -> None:
        """Count an answered ask."""
        self.asks_total += 1
        self._asked_at = time.monotonic()

    @property
    def hold(self) -> int:
        """Maximum of tokens to hold: about HOLD_SECONDS of work, and at least two micro-batches."""
        return max(int(self.tokens_per_second * HOLD_SECONDS), 2 * self.budget)

    def learn(self, texts: int, tokens: int, seconds: float) -> None:
        """Record one inference. Small batches weigh less because they say little about the speed of full ones."""
        weight = _LEARNING_RATE * min(1.0, tokens / self.budget)
        self.tokens_per_second += weight * (tokens / max(seconds, 1e-6) - self.tokens_per_second)
        self.texts_total += texts
        self.batch_texts.observe(texts)
        self.inference_seconds.observe(seconds)
        now = time.monotonic()
        self._done.append((now, texts))
        while self._done[0][0] < now - _WINDOW_SECONDS:
            self._done.popleft()

    def texts_per_second(self) -> float:
        """Texts per second over the last ten seconds. Safe to call from any thread."""
        since = time.monotonic() - _WINDOW_SECONDS
        return sum(texts for at, texts in tuple(self._done) if at >= since) / _WINDOW_SECONDS
