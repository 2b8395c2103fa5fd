"""Describe a span as plain data, and derive from spans the run's metrics and the manifest's section ``telemetry``.

The journal stores these records; Prometheus, OTLP, the manifest and the report read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ensemble_assets.common.events import Event, Value
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS, Category
from ensemble_assets.telemetry.allowed_values import Scalar
from ensemble_assets.telemetry.metrics import (
    METRICS,
    STAGE_RULES,
    Measurement,
    MetricValues,
    check_namespace,
    from_event,
    full_name,
    measure,
)

ROOT = "rag.run"
"""Name of the span of the whole run."""
MAX_EVENTS = 1000
"""Most events that a record keeps in full; further ones are only counted."""


@dataclass
class Tally:
    """Events of one stage, all its model and worker spans together, counted and measured as they happen."""

    collection: str
    stage: str
    events: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    sums: MetricValues = field(default_factory=MetricValues)
    observed: list[Measurement] = field(default_factory=list)
    dropped: int = 0

    def add(self, event: Event) -> None:
        """Count an admitted event and its measurements; store it unless it only reports progress."""
        self.counts[event.name] = self.counts.get(event.name, 0) + 1
        if EVENTS[event.name].category == "progress":
            return
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        for measurement in from_event(self.collection, self.stage, event.name, event.facts):
            if METRICS[measurement.metric].kind != "histogram":
                self.sums.add([measurement])
            elif len(self.observed) < MAX_EVENTS:
                self.observed.append(measurement)

    def reported_fallbacks(self, reason: str) -> int:
        """Count the fallbacks for ``reason`` that the events of this stage named."""
        facts = (event.facts for event in self.events if event.name == f"fallback.{self.stage}")
        return sum(int(fact.get("count") or 1) for fact in facts if fact.get("reason") == reason)

    def record_fields(self) -> dict[str, Any]:
        """Return the fields of the stage's record that come from its events."""
        measurements = (*self.sums.measurements(), *self.observed)
        return {"events": tuple(self.events), "counts": dict(self.counts), "measurements": measurements}


@dataclass(frozen=True)
class SpanStart:
    """The beginning of a stage, model, worker or run span, in seconds since the epoch.

    Span ids have 16 hex digits, trace ids 32. The root's ``parent_id`` and ``stage`` are empty, and its ``stage_id`` is
    its own.
    """

    name: str
    span_id: str
    parent_id: str
    trace_id: str
    stage_id: str
    stage: str
    started_at: float

    @property
    def is_stage(self) -> bool:
        """Whether this is a stage's own span, not a run, model or worker span."""
        return self.name == f"rag.{self.stage}"


@dataclass(frozen=True)
class SpanRecord(SpanStart):
    """A span that ended, or the part of it that happened. Only the span of a stage has the last three fields.

    Attributes:
        status: ``active``, ``skipped``, ``failed`` or ``unfinished`` (its process died).
        ended_at: seconds since the epoch; for unfinished spans the time of the last event.
        events: of the whole stage, at most ``MAX_EVENTS``; ``counts`` counts all of them by name.
        measurements: sums of counters, values of gauges and single observations of histograms.
    """

    status: str
    ended_at: float
    attributes: Mapping[str, Scalar]
    events: tuple[Event, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    @property
    def collection(self) -> str:
        """The collection as telemetry shows it; empty for the run's span."""
        return str(self.attributes.get("collection", ""))


def stage_measurements(record: SpanRecord) -> Iterator[Measurement]:
    """Measure a stage that ended: its latency and failure, and its amounts if it succeeded.

    A skipped stage gives nothing.

    Where events reported the peak of each device, the stage's own peak is left out.
    """
    if record.status not in ("active", "failed"):
        return
    amounts = dict(record.attributes) if record.status == "active" else {}
    if any(measurement.metric == "gpu_peak_bytes" for measurement in record.measurements):
        amounts.pop("peak_bytes", None)
    values: dict[str, Value] = {STAGE_RULES[name]: amount for name, amount in amounts.items() if name in STAGE_RULES}
    values |= {
        f"{record.stage}_latency_seconds": record.attributes.get("latency_seconds"),
        "stage_failures_total": int(record.status == "failed"),
        "last_run_timestamp_seconds": record.ended_at,
    }
    for metric, value in values.items():
        yield from measure(metric, value, record.collection, record.stage, record.attributes)


def latest_tries(records: Iterable[SpanRecord]) -> list[SpanRecord]:
    """Choose the last try of every stage of every collection, in the order of the stages."""
    latest: dict[tuple[str, str], SpanRecord] = {}
    for record in sorted(filter(lambda record: record.is_stage, records), key=lambda record: record.started_at):
        latest[record.collection, record.stage] = record
    return sorted(latest.values(), key=lambda record: TIMED_STAGES.index(record.stage))


def metric_values(records: Iterable[SpanRecord]) -> MetricValues:
    """Add up the metrics of spans: events of every try, amounts and outcome of the last try."""
    values = MetricValues()
    stages = [record for record in records if record.is_stage]
    for record in stages:
        values.add(record.measurements)
    for record in latest_tries(stages):
        values.add(stage_measurements(record))
    return values


_COUNTED: Mapping[str, frozenset[Category]] = {
    "lease_events_recorded": frozenset({"lease"}),
    "batch_progress_events_recorded": frozenset({"progress"}),
    "mitigation_events_recorded": frozenset({"mitigation", "fallback"}),
}


def telemetry_section(
    records: Iterable[SpanRecord], *, metrics_enabled: bool = True, namespace: str = "rag"
) -> dict[str, Any]:
    """Make the manifest's ``telemetry`` object, in the layout of CONTRACT v4.1, of the last try of each stage.

    Returns ``spans`` by span name, ``metrics`` by stage, and the three event counts.
    """
    stages = latest_tries(records)
    counts = [item for record in stages for item in record.counts.items() if item[0] in EVENTS]
    return {
        "spans": {record.name: _span(record) for record in stages},
        "metrics": {record.stage: _metrics(record, metrics_enabled, check_namespace(namespace)) for record in stages},
        **{
            key: sum(number for name, number in counts if EVENTS[name].category in categories)
            for key, categories in _COUNTED.items()
        },
    }


def _span(record: SpanRecord) -> dict[str, Any]:
    skipped = record.status == "skipped"
    reason = {"reason": record.attributes.get("reason", "feature_disabled")} if skipped else {}
    seconds = record.attributes.get("latency_seconds", record.ended_at - record.started_at)  # without waiting
    return {
        "span_id": record.span_id,
        "status": "skipped" if skipped else "active",
        **reason,
        "attributes": {
            **record.attributes,
            **({} if skipped else {"latency_ms": round(1000 * float(seconds), 3)}),
        },
        "timestamp": datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="microseconds"),
    }


def _metrics(record: SpanRecord, enabled: bool, namespace: str) -> dict[str, Any]:
    if record.status == "skipped":
        return {"status": "skipped", "reason": record.attributes.get("reason", "feature_disabled"), "metrics": []}
    if not enabled:
        return {"status": "skipped", "reason": "metrics_disabled", "metrics": []}
    names = metric_values([record]).names()
    return {"status": "emitted", "metrics": [full_name(namespace, name) for name in names]}
