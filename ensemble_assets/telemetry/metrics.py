"""List the metrics, measure span attributes and events with them, and add the measurements up.

Prometheus and OTLP read the sums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.events import Value
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS

Kind = Literal["histogram", "counter", "gauge"]
Labels = tuple[tuple[str, str], ...]

MAX_SERIES = 200
"""Most label combinations of one metric in one run; further ones are counted under the value ``other``."""
# Prometheus keeps every combination as a series of its own, so a fault in a label must not make thousands

# from the fusion of a small collection to a night's run; neighbours differ by about a factor of two
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 10800.0)


@dataclass(frozen=True)
class MetricSpec:
    """One instrument, exported as ``<namespace>_<name>``; all have the label ``collection`` besides ``labels``.

    Gauges keep the last value of a run, or the highest where ``highest`` is set. ``unit`` is for OTLP.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    unit: str = "1"
    highest: bool = False

    @property
    def buckets(self) -> tuple[float, ...]:
        """Upper bounds of histogram buckets, seconds."""
        return _SECONDS if self.kind == "histogram" else ()


_SPECS = (
    *(
        MetricSpec(f"{stage}_latency_seconds", "histogram", f"Wall time of the {stage} stage.", unit="s")
        for stage in TIMED_STAGES
    ),
    MetricSpec("stage_items_total", "counter", "Items that a stage finished.", ("stage",)),
    MetricSpec("stage_tokens_total", "counter", "Tokens that went through a stage's models.", ("stage",)),
    MetricSpec(
        "gpu_peak_bytes", "gauge", "Highest memory in use on a device, all processes counted.", ("stage", "device"),
        unit="By", highest=True,
    ),
    MetricSpec("gpu_lease_wait_seconds", "histogram", "Time waited for a device lease.", ("stage",), unit="s"),
    MetricSpec("sparse_coverage_ratio", "gauge", "Share of chunks with a sparse vector."),
    MetricSpec(
        "sparse_fallback_total", "counter", "Chunks without a live sparse vector.", ("reason", "source")
    ),
    MetricSpec(
        "rerank_fallback_total", "counter", "Queries that kept their fused order.", ("reason", "source")
    ),
    MetricSpec("truncated_chunks_total", "counter", "Texts cut to a model's length.", ("stage",)),
    MetricSpec("precision_fallback_total", "counter", "Rows redone in float32 after non-finite values.", ("stage",)),
    MetricSpec("mitigations_total", "counter", "Recoveries from memory or device trouble.", ("stage",)),
    MetricSpec("stage_failures_total", "counter", "Stages that ended with an error.", ("stage",)),
    MetricSpec("latency_budget_ratio", "gauge", "Measured latency ratio of the run.", ("against",)),
    MetricSpec("latency_budget_limit_ratio", "gauge", "Limit of that ratio.", ("against",)),
    MetricSpec("dropped_attributes_total", "counter", "Values that the allow-list kept out.", ("stage",)),
    MetricSpec("last_run_timestamp_seconds", "gauge", "When the stage last ended, Unix time.", ("stage",), unit="s"),
)  # fmt: skip

METRICS: MappingProxyType[str, MetricSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
COMMON_LABEL = "collection"


@dataclass(frozen=True)
class Measurement:
    """One value for one series of a metric."""

    metric: str
    labels: Labels
    value: float


_EVENT_RULES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lease.acquired": (("gpu_lease_wait_seconds", "wait_seconds"),),
    "device.peak": (("gpu_peak_bytes", "used_bytes"),),
    "fallback.sparse": (("sparse_fallback_total", "count"),),
    "fallback.rerank": (("rerank_fallback_total", "count"),),
    "budget.measured": (("latency_budget_ratio", "ratio"), ("latency_budget_limit_ratio", "limit")),
}
"""Per event, the metrics that its facts feed; an event without a ``count`` counts as 1."""
STAGE_RULES: Mapping[str, str] = {
    "items": "stage_items_total",
    "tokens": "stage_tokens_total",
    "truncated": "truncated_chunks_total",
    "precision_redone": "precision_fallback_total",
    "peak_bytes": "gpu_peak_bytes",
    "coverage_ratio": "sparse_coverage_ratio",
    "dropped_attributes": "dropped_attributes_total",
}
"""Per attribute of a stage that succeeded, the metric that it feeds."""


def from_event(collection: str, stage: str, name: str, facts: Mapping[str, Value]) -> Iterator[Measurement]:
    """Measure an admitted event."""
    for metric, fact in _EVENT_RULES.get(name, ()):
        yield from measure(metric, facts.get(fact, 1 if fact == "count" else None), collection, stage, facts)
    if EVENTS[name].category == "mitigation":
        yield from measure("mitigations_total", 1, collection, stage, facts)


def measure(
    metric: str, value: Value, collection: str, stage: str, facts: Mapping[str, Value]
) -> Iterator[Measurement]:
    """Make the measurement of a value, with its labels from ``facts``; none of a value that is no number."""
    if isinstance(value, (int, float)):
        given = {**facts, "stage": stage}
        labels = ((name, str(given.get(name, "other"))) for name in METRICS[metric].labels)
        yield Measurement(metric, ((COMMON_LABEL, collection), *labels), float(value))


@dataclass
class Histogram:
    """Counts per bucket (the last one open-ended), and sum, least and largest of the observed values."""

    counts: list[int]
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf


@dataclass
class MetricValues:
    """Measurements added up per series."""

    numbers: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, Histogram]] = field(default_factory=dict)

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Add measurements, in the order in which they happened."""
        for measurement in measurements:
            spec = METRICS[measurement.metric]
            if spec.kind == "histogram":
                self._observe(spec, measurement)
            else:
                self._put(spec, measurement)

    def names(self) -> tuple[str, ...]:
        """List the metrics that have a value, in the order of the table."""
        return tuple(name for name in METRICS if name in self.numbers or name in self.histograms)

    def measurements(self) -> Iterator[Measurement]:
        """Turn counters and gauges into measurements again, so that sums can be added to others."""
        for name, series in self.numbers.items():
            yield from (Measurement(name, labels, value) for labels, value in series.items())

    def _put(self, spec: MetricSpec, measurement: Measurement) -> None:
        series = self.numbers.setdefault(spec.name, {})
        labels, value = _bounded(series, measurement.labels), measurement.value
        if spec.kind == "counter":
            value += series.get(labels, 0.0)
        elif spec.highest:
            value = max(value, series.get(labels, value))
        series[labels] = value

    def _observe(self, spec: MetricSpec, measurement: Measurement) -> None:
        series = self.histograms.setdefault(spec.name, {})
        labels = _bounded(series, measurement.labels)
        seen = series.setdefault(labels, Histogram([0] * (len(spec.buckets) + 1)))
        seen.counts[sum(bound < measurement.value for bound in spec.buckets)] += 1
        seen.total += measurement.value
        seen.least, seen.most = min(seen.least, measurement.value), max(seen.most, measurement.value)


def _bounded(series: Mapping[Labels, object], labels: Labels) -> Labels:
    if labels in series or len(series) < MAX_SERIES:
        return labels
    return tuple((name, "other") for name, _ in labels)


def check_namespace(namespace: str) -> str:
    """Return the namespace; ``SettingsError`` if it cannot start a metric name."""
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", namespace, re.ASCII):
        raise SettingsError(
            f"metrics.namespace (EMBEDDER_METRICS_NAMESPACE) is {namespace[:64]!r}; expected letters, digits and _, "
            "not starting with a digit, such as 'rag'"
        )
    return namespace


def full_name(namespace: str, metric: str) -> str:
    """Write the name under which a metric is exported."""
    return f"{namespace}_{metric}"
