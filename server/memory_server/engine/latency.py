"""Latencies of recent calls, for percentiles and histograms."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping

from cachetools import LRUCache

from memory_server.contract.stats import Percentiles
from memory_server.engine.counters import FAMILIES
from memory_server.engine.sidecars.vector_cache import Asker

_REMEMBERED_AGENTS = 1000
_SAMPLES_OF_ONE = 250


class Latency:
    """The last durations of an operation: a thousand of all calls, and some hundreds per agent."""

    def __init__(self, name: str, text: str) -> None:
        self.histogram = FAMILIES.histogram(name, text)
        self._samples: deque[float] = deque(maxlen=1000)
        self._by_agent: MutableMapping[tuple[str, str], deque[float]] = LRUCache(_REMEMBERED_AGENTS)

    def add(self, asker: Asker, milliseconds: float) -> None:
        self.histogram.observe(milliseconds / 1000)
        own = self._by_agent.setdefault((asker.namespace, asker.agent), deque(maxlen=_SAMPLES_OF_ONE))
        for samples in (self._samples, own):
            samples.append(milliseconds)

    def percentiles(self, asker: Asker | None = None) -> Percentiles:
        """Return the percentiles in milliseconds, of one agent's calls or of all; None without samples."""
        samples = self._by_agent.get((asker.namespace, asker.agent), ()) if asker else self._samples
        ordered = sorted(samples)
        if not ordered:
            return Percentiles()

        def at(share: float) -> float:
            return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2)

        return Percentiles(count=len(ordered), p50=at(0.5), p95=at(0.95), p99=at(0.99))
