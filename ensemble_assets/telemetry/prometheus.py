"""Publish a run's metrics to Prometheus when a stage ends: a text file for its collector, a push to a Pushgateway.

Batch jobs end before a scrape, so both leave the values of a collection's last run where a scrape finds them. The
values are those of all stages of the run so far, from all its processes, read from the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, push_to_gateway, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.exporters import ProcessTelemetry
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets.telemetry.metrics import COMMON_LABEL, METRICS, MetricValues, full_name
from ensemble_assets.telemetry.span_record import SpanRecord, metric_values

JOB = "ensemble_assets"


class _Values(Collector):
    """Shows metric values to the Prometheus library."""

    def __init__(self, values: MetricValues, namespace: str) -> None:
        self._values = values
        self._namespace = namespace

    def collect(self) -> Iterator[Metric]:
        for spec in map(METRICS.__getitem__, self._values.names()):
            name, labels = full_name(self._namespace, spec.name), (COMMON_LABEL, *spec.labels)
            if spec.kind == "histogram":
                histogram = HistogramMetricFamily(name, spec.meaning, labels=labels)
                bounds = [*map(str, spec.buckets), "+Inf"]
                for series, seen in self._values.histograms[spec.name].items():
                    buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
                    histogram.add_metric([label for _, label in series], buckets, seen.total)
                yield histogram
            else:
                make = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
                family = make(name, spec.meaning, labels=labels)
                for series, value in self._values.numbers[spec.name].items():
                    family.add_metric([label for _, label in series], value)
                yield family


def registry(values: MetricValues, namespace: str) -> CollectorRegistry:
    """Make a registry that holds exactly ``values``."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Values(values, namespace))
    return collectors


def textfile_path(folder: Path, collection: str) -> Path:
    """Name the text file of a collection; the textfile collector reads ``*.prom``."""
    return folder / f"{JOB}_{collection}.prom"


def write_textfile(values: MetricValues, namespace: str, folder: Path, collection: str) -> Path:
    """Replace the collection's text file in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    path = textfile_path(folder, collection)
    write_to_textfile(str(path), registry(values, namespace))
    return path


def publish(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord], ended: SpanRecord) -> None:
    """Write the text file; push if the run is through or a stage failed. Failures are remembered, not raised.

    Without a journal the values are those of ``own``, the stage spans that ended in this process.
    """
    options = process.options

    def values() -> MetricValues:
        if process.journal is None:
            return metric_values(own)
        spans = read_journal(process.journal.path, progress=False).spans
        return metric_values(span for span in spans if span.collection == collection)

    def write(folder: Path) -> None:
        with process.journal.exclusive() if process.journal else nullcontext():
            write_textfile(values(), options.namespace, folder, collection)

    def push() -> None:
        """Replace the collection's group at the Pushgateway (HTTP PUT)."""
        push_to_gateway(
            options.pushgateway,
            job=JOB,
            registry=registry(values(), options.namespace),
            grouping_key={COMMON_LABEL: collection},
            timeout=options.timeout_seconds,
        )

    if options.textfile_folder is not None:
        process.contained("textfile", partial(write, options.textfile_folder))
    if options.pushgateway and (ended.stage == TIMED_STAGES[-1] or ended.status == "failed"):
        process.contained("pushgateway", push)
