"""Measures how fast this sidecar is, because batch size, read-ahead and the heartbeat all follow from it."""

from __future__ import annotations

import time
from collections import deque

from memory_core.histogram import Histogram
from memory_embedder.engines.encoder import LARGEST_BUDGET, SMALLEST_BUDGET

BATCH_SECONDS = 0.1
"""How long one micro-batch should take: an ask waits for at most one."""
ASKED_BATCH_SECONDS = 0.03
"""How long where somebody asked in the last ASKED_SECONDS and so may ask again; smaller batches waste a little."""
ASKED_SECONDS = 2.0
HOLD_SECONDS = 2.0
"""How much work is taken from the streams at once; the rest is left to other sidecars."""
_LEARNING = 0.3
_WINDOW = 10.0
_TEXTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Load:
    """Throughput in padded tokens a second, as a moving average, and texts done in the last ten seconds."""

    def __init__(self, tokens_per_second: float = SMALLEST_BUDGET / BATCH_SECONDS) -> None:
        self.tokens_per_second = tokens_per_second
        self.texts_total = 0
        self.asks_total = 0
        self.batch_texts = Histogram(_TEXTS)
        self.inference_seconds = Histogram()
        self._done: deque[tuple[float, int]] = deque()
        self._asked_at = -ASKED_SECONDS

    @property
    def budget(self) -> int:
        """Padded tokens of a micro-batch that takes about BATCH_SECONDS, or ASKED_BATCH_SECONDS while asked."""
        seconds = ASKED_BATCH_SECONDS if self.is_asked else BATCH_SECONDS
        return int(min(max(self.tokens_per_second * seconds, SMALLEST_BUDGET), LARGEST_BUDGET))

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked of late, and so may ask again."""
        return time.monotonic() < self._asked_at + ASKED_SECONDS

    def note_ask(self) -> None:
        """Count an ask that was answered."""
        self.asks_total += 1
        self._asked_at = time.monotonic()

    @property
    def hold(self) -> int:
        """Tokens to hold at most: about HOLD_SECONDS of work, and never less than two micro-batches."""
        return max(int(self.tokens_per_second * HOLD_SECONDS), 2 * self.budget)

    def learn(self, texts: int, tokens: int, seconds: float) -> None:
        """Count one inference. Small ones say little of the speed of full ones and weigh less."""
        weight = _LEARNING * min(1.0, tokens / self.budget)
        self.tokens_per_second += weight * (tokens / max(seconds, 1e-6) - self.tokens_per_second)
        self.texts_total += texts
        self.batch_texts.add(texts)
        self.inference_seconds.add(seconds)
        now = time.monotonic()
        self._done.append((now, texts))
        while self._done[0][0] < now - _WINDOW:
            self._done.popleft()

    def texts_per_second(self) -> float:
        """Texts a second over the last ten seconds; any thread may ask."""
        since = time.monotonic() - _WINDOW
        return sum(texts for at, texts in tuple(self._done) if at >= since) / _WINDOW
