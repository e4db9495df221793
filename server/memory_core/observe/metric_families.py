"""Prometheus metrics whose names share a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bucket bounds for the duration of calls."""

disable_created_metrics()


@dataclass(frozen=True, slots=True)
class Families:
    """Makes metrics with a name prefix. The plural methods give one sample for each value of a label."""

    prefix: str

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """A number that rises and falls."""
        return GaugeMetricFamily(self.prefix + name, text, value=float(value))

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        return _labelled(GaugeMetricFamily(self.prefix + name, text, labels=(label,)), values)

    def counter(self, name: str, text: str, value: float) -> Metric:
        """A number that only rises."""
        return CounterMetricFamily(self.prefix + name, text, value=value)

    def counters(self, name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
        return _labelled(CounterMetricFamily(self.prefix + name, text, labels=(label,)), values)

    def histogram(self, name: str, text: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> Histogram:
        """An empty histogram that belongs to no registry."""
        return Histogram(self.prefix + name, text, labels, registry=None, buckets=bounds)


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, int]) -> Metric:
    for value, number in values.items():
        family.add_metric((value,), number)
    return family
