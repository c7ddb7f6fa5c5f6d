"""What the functions that make metrics share: what they look at, and the families of the Prometheus library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from holdfast.serving.clients import Clients
from holdfast.serving.pool import ServedPool

NS = 1e-9

Labelled = Iterable[tuple[Sequence[str], float]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What metrics are made from."""

    pool: ServedPool
    clients: Clients
    started_ns: int
    version: str


def gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"holdfast_{name}", documentation, value=value)


def counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"holdfast_{name}", documentation, value=value)


def gauges(name: str, documentation: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"holdfast_{name}", documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def counters(name: str, documentation: str, labels: Sequence[str], values: Labelled) -> Metric:
    family = CounterMetricFamily(f"holdfast_{name}", documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
