"""Prometheus: metric values as a registry, a text file for the textfile collector, a push to a Pushgateway.

Batch jobs end before a scrape, so both ways leave the values of a collection's last run where a scrape finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, push_to_gateway, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemble_assets.telemetry.metrics import COMMON_LABEL, METRICS, MetricSpec, MetricValues, full_name

JOB = "ensemble_assets"


class _Values(Collector):
    """Shows metric values to the Prometheus library."""

    def __init__(self, values: MetricValues, namespace: str) -> None:
        self._values = values
        self._namespace = namespace

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name in self._values.names():
            yield _family(METRICS[name], self._values, self._namespace)


def _family(spec: MetricSpec, values: MetricValues, namespace: str) -> Metric:
    name, labels = full_name(namespace, spec.name), (COMMON_LABEL, *spec.labels)
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(name, spec.meaning, labels=labels)
        for series, found in values.histograms[spec.name].items():
            bounds = [*(str(bound) for bound in spec.buckets), "+Inf"]
            running = [sum(found.counts[: i + 1]) for i in range(len(bounds))]
            histogram.add_metric([value for _, value in series], list(zip(bounds, running, strict=True)), found.total)
        return histogram
    family = (CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily)(name, spec.meaning, labels=labels)
    for series, value in values.numbers[spec.name].items():
        family.add_metric([label for _, label in series], value)
    return family


def registry(values: MetricValues, namespace: str) -> CollectorRegistry:
    """A registry that holds exactly ``values``."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Values(values, namespace))
    return made


def textfile_path(folder: Path, collection: str) -> Path:
    """The text file of a collection; the textfile collector reads ``*.prom``."""
    return folder / f"{JOB}_{collection}.prom"


def write_textfile(values: MetricValues, namespace: str, folder: Path, collection: str) -> Path:
    """Replaces the collection's text file in one step.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = textfile_path(folder, collection)
    write_to_textfile(str(path), registry(values, namespace))
    return path


def push(values: MetricValues, namespace: str, gateway: str, collection: str, timeout: float) -> None:
    """Replaces the collection's group at a Pushgateway (HTTP PUT).

    Args:
        values: what is pushed.
        namespace: start of every metric name.
        gateway: URL of the Pushgateway.
        collection: grouping key besides the job.
        timeout: seconds.

    Raises:
        OSError: if it cannot be reached or refuses.
    """
    push_to_gateway(
        gateway, job=JOB, registry=registry(values, namespace), grouping_key={COMMON_LABEL: collection}, timeout=timeout
    )
