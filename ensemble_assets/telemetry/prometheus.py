"""Publish a run's metrics to Prometheus when a stage ends: a text file for its collector, a push to a Pushgateway.

Batch jobs end before a scrape, so both leave the values of a collection's last run where a scrape finds them. The
values are those of all stages of the run so far, from all its processes, read from the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from prometheus_client import CollectorRegistry, push_to_gateway, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.exporters import ProcessTelemetry
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets.telemetry.metrics import COMMON_LABEL, METRICS, MetricSpec, MetricValues, full_name
from ensemble_assets.telemetry.span_record import SpanRecord, metric_values

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
        for series, seen in values.histograms[spec.name].items():
            bounds = [*(str(bound) for bound in spec.buckets), "+Inf"]
            running = [sum(seen.counts[: i + 1]) for i in range(len(bounds))]
            histogram.add_metric([value for _, value in series], list(zip(bounds, running, strict=True)), seen.total)
        return histogram
    family = (CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily)(name, spec.meaning, labels=labels)
    for series, value in values.numbers[spec.name].items():
        family.add_metric([label for _, label in series], value)
    return family


def registry(values: MetricValues, namespace: str) -> CollectorRegistry:
    """Make a registry that holds exactly ``values``."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Values(values, namespace))
    return collectors


def textfile_path(folder: Path, collection: str) -> Path:
    """Name the text file of a collection; the textfile collector reads ``*.prom``."""
    return folder / f"{JOB}_{collection}.prom"


def write_textfile(values: MetricValues, namespace: str, folder: Path, collection: str) -> Path:
    """Replace the collection's text file in one step.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = textfile_path(folder, collection)
    write_to_textfile(str(path), registry(values, namespace))
    return path


def push(values: MetricValues, namespace: str, gateway: str, collection: str, timeout: float) -> None:
    """Replace the collection's group at a Pushgateway (HTTP PUT).

    Args:
        values: to be pushed.
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


def publish(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord], ended: SpanRecord) -> None:
    """Write the text file; push if the run is through or a stage failed. Failures are remembered, not raised.

    Args:
        process: this process's telemetry.
        collection: as telemetry shows it.
        own: stage spans that ended in this process; published when there is no journal.
        ended: the stage that just ended.
    """
    options = process.options
    folder = options.textfile_folder

    def write() -> None:
        assert folder is not None
        with process.journal.exclusive() if process.journal else nullcontext():
            write_textfile(_values(process, collection, own), options.namespace, folder, collection)

    def send() -> None:
        values = _values(process, collection, own)
        push(values, options.namespace, options.pushgateway, collection, options.timeout_seconds)

    if folder is not None:
        process.contained("textfile", write)
    if options.pushgateway and (ended.stage == TIMED_STAGES[-1] or ended.status == "failed"):
        process.contained("pushgateway", send)


def _values(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord]) -> MetricValues:
    if process.journal is None:
        return metric_values(own)
    spans = read_journal(process.journal.path, progress=False).spans
    return metric_values(span for span in spans if span.collection == collection)
