"""Makes metric families as Prometheus's client knows them, all under one prefix; loaded where figures are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from memory_core.observe.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Families:
    """Families whose names begin with a prefix; the plural ones have a sample for each value of a label."""

    prefix: str

    def gauge(self, name: str, said: str, value: float) -> Metric:
        """A number that rises and falls."""
        return GaugeMetricFamily(self.prefix + name, said, value=float(value))

    def gauges(self, name: str, said: str, label: str, values: Mapping[str, int]) -> Metric:
        """Several of them."""
        family = GaugeMetricFamily(self.prefix + name, said, labels=(label,))
        for value, number in values.items():
            family.add_metric((value,), number)
        return family

    def counter(self, name: str, said: str, value: float) -> Metric:
        """A number that only rises."""
        return CounterMetricFamily(self.prefix + name, said, value=value)

    def counters(self, name: str, said: str, label: str, values: Mapping[str, int]) -> Metric:
        """Several of them."""
        family = CounterMetricFamily(self.prefix + name, said, labels=(label,))
        for value, number in values.items():
            family.add_metric((value,), number)
        return family

    def histogram(self, name: str, said: str, histogram: Histogram) -> Metric:
        """How often what was measured lay where."""
        family = HistogramMetricFamily(self.prefix + name, said)
        family.add_metric((), histogram.buckets(), histogram.total)
        return family

    def histograms(self, name: str, said: str, label: str, histograms: Mapping[str, Histogram]) -> Metric:
        """Several of them."""
        family = HistogramMetricFamily(self.prefix + name, said, labels=(label,))
        for value, histogram in histograms.items():
            family.add_metric((value,), histogram.buckets(), histogram.total)
        return family
