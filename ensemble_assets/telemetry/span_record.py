"""What is known of a span once it ended, as plain data: for artefact facts, the journal, the manifest and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemble_assets.common.events import Event
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.allowed_values import Scalar
from ensemble_assets.telemetry.metrics import METRICS, Measurement, MetricValues, from_event, from_stage

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

    def take(self, event: Event) -> None:
        """Counts an admitted event and what it measures; keeps it unless it only reports progress."""
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
        """How many fallbacks for ``reason`` the events of this stage named."""
        facts = (event.facts for event in self.events if event.name == f"fallback.{self.stage}")
        return sum(int(fact.get("count") or 1) for fact in facts if fact.get("reason") == reason)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What the events measured: sums of counters, values of gauges, single observations of histograms."""
        return (*self.sums.measurements(), *self.observed)


@dataclass(frozen=True)
class SpanRecord:
    """A stage, model, worker or run span.

    Attributes:
        name: ``rag.dense`` and so on, see ``allow_list.SPANS``.
        span_id: 16 hex digits.
        parent_id: 16 hex digits, or empty for the root.
        trace_id: 32 hex digits.
        stage: empty for the run's span.
        status: ``active``, ``skipped``, ``failed`` or ``unfinished`` (its process died).
        started_at: seconds since the epoch.
        ended_at: seconds since the epoch; for unfinished spans when something was last heard of it.
        attributes: admitted attributes.
        events: for stage spans, the events of the whole stage, at most ``MAX_EVENTS``.
        counts: for stage spans, events per name, progress included.
        measurements: for stage spans, what the events measured.
    """

    name: str
    span_id: str
    parent_id: str
    trace_id: str
    stage: str
    status: str
    started_at: float
    ended_at: float
    attributes: Mapping[str, Scalar]
    events: tuple[Event, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    @property
    def is_stage(self) -> bool:
        """Whether this is a stage's own span, not a run, model or worker span."""
        return self.name == f"rag.{self.stage}"

    @property
    def collection(self) -> str:
        """The collection as telemetry shows it; empty for the run's span."""
        return str(self.attributes.get("collection", ""))

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary, for artefact facts."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "attributes": dict(self.attributes),
            "events": [{"name": event.name, "at": event.at, "facts": event.facts} for event in self.events],
            "counts": dict(self.counts),
            "measurements": [
                {"metric": m.metric, "labels": dict(m.labels), "value": m.value} for m in self.measurements
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpanRecord:
        """The inverse of ``as_json``."""
        return cls(
            **{name: data[name] for name in _PLAIN},
            attributes=dict(data["attributes"]),
            events=tuple(Event(event["name"], event["at"], event["facts"]) for event in data.get("events", ())),
            counts=dict(data.get("counts", {})),
            measurements=tuple(
                Measurement(m["metric"], tuple(m["labels"].items()), m["value"]) for m in data.get("measurements", ())
            ),
        )


_PLAIN = ("name", "span_id", "parent_id", "trace_id", "stage", "status", "started_at", "ended_at")


def stage_measurements(record: SpanRecord) -> Iterator[Measurement]:
    """What a stage's attributes measure, besides its events; a peak per device wins over the stage's own."""
    per_device = any(measurement.metric == "gpu_peak_bytes" for measurement in record.measurements)
    attributes = {name: v for name, v in record.attributes.items() if not (per_device and name == "peak_bytes")}
    yield from from_stage(record.collection, record.stage, record.status, record.ended_at, attributes)


def latest_tries(records: Iterable[SpanRecord]) -> list[SpanRecord]:
    """Stage spans only; of several tries of a stage of a collection the one that started last, in order of stages."""
    found: dict[tuple[str, str], SpanRecord] = {}
    for record in sorted(filter(lambda record: record.is_stage, records), key=lambda record: record.started_at):
        found[record.collection, record.stage] = record
    return sorted(found.values(), key=lambda record: TIMED_STAGES.index(record.stage))


def metric_values(records: Iterable[SpanRecord]) -> MetricValues:
    """All metrics of the given spans: events of every try, amounts and outcome of the last one."""
    values = MetricValues()
    stages = [record for record in records if record.is_stage]
    for record in stages:
        values.add(record.measurements)
    for record in latest_tries(stages):
        values.add(stage_measurements(record))
    return values
