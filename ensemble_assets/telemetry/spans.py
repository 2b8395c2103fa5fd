"""Hold a span that is open in this process: it takes attributes and events through the allow-list.

An exception leaves the name of its class on a span, never its message. Stages are opened by ``run_telemetry``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import getrandbits

from ensemble_assets.artefacts.stage_record import Record, StageRecord
from ensemble_assets.common.events import Event, Value
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.allowed_names import ERROR_TYPES, EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.allowed_values import Declared, Scalar, admit, declare
from ensemble_assets.telemetry.exporters import ProcessTelemetry
from ensemble_assets.telemetry.log import log_event
from ensemble_assets.telemetry.span_record import MAX_EVENTS, SpanRecord, SpanStart, Tally

_STANDS_IN = {"sparse": "metadata", "rerank": "fused_order"}


def error_word(error: BaseException) -> str:
    """Name the error's class, or its nearest base that the allow-list has, or ``other``."""
    return next((base.__name__ for base in type(error).__mro__ if base.__name__ in ERROR_TYPES), "other")


@dataclass
class StageState:
    """The state that all spans of one stage share."""

    process: ProcessTelemetry
    declared: Declared
    tally: Tally
    identity: dict[str, Scalar]
    id_parts: tuple[str | int, ...]
    revisions: dict[str, str] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)


_OF_THE_SPAN = frozenset({"stage", "status"})
"""Attributes that a span sets itself; a record has facts of the same names."""

CURRENT: ContextVar[ActiveSpan | None] = ContextVar("ensemble_assets_span", default=None)


class ActiveSpan:
    """An open span. It is an ``EventSink``; threads may share it."""

    def __init__(self, state: StageState, start: SpanStart, attributes: Mapping[str, Value]) -> None:
        self.start = start
        self.state = state
        self._clock = time.perf_counter()
        self._status = "active"
        self._ended_at = 0.0
        self._ended = False
        self._attributes: dict[str, Scalar] = {}
        self._events: list[Event] = []
        self._allowed = SPANS[start.name].attributes
        has_children = start.is_stage and start.stage in MODEL_STAGES
        self._children = _ChildSpans(self) if has_children else None
        self.rows = 0
        self.peak_bytes: int | None = None
        self.set(**{**attributes, **state.identity})
        state.process.write_journal(lambda journal: journal.started(start, self._attributes))

    def declare_model(self, slug: str, revision: str) -> None:
        """Admit a model's slug and revision on this stage's spans: the operator chose both."""
        state, new = self.state, declare(model=(slug,), revision=(revision,))
        with state.lock:
            state.revisions[slug] = revision
            state.declared = {kind: names | new.get(kind, frozenset()) for kind, names in state.declared.items()}

    def set(self, /, **attributes: Value) -> None:
        """Set attributes; names and values that the allow-list does not know are counted and left out."""
        admitted, dropped = admit(attributes, self._allowed, FIELDS, self.state.declared)
        with self.state.lock:
            self.state.tally.dropped += dropped
            self._attributes.update(admitted)

    def describe(self, record: Record) -> None:
        """Take over the stage's record: amounts, outcome, and fallbacks that no event reported."""
        if not record.enabled:
            self.skip("feature_disabled")
            return
        facts = record.scalars()
        if not facts.get("peak_bytes"):
            facts.pop("peak_bytes", None)  # 0 says that nobody measured it
        amounts: dict[str, Value] = {name: facts[name] for name in facts.keys() & self._allowed - _OF_THE_SPAN}
        self.set(**{**amounts, "outcome": record.status})
        reasons = record.fallback_reasons if isinstance(record, StageRecord) else {}
        stands_in = _STANDS_IN.get(self.start.stage, "none")
        for reason, total in reasons.items():
            reported = self.state.tally.reported_fallbacks(reason)
            if total > reported:
                self.emit(f"fallback.{self.start.stage}", reason=reason, source=stands_in, count=total - reported)

    def emit(self, name: str, /, **facts: Value) -> None:
        """Record one event now."""
        self.record_event(Event(name, time.time(), facts))

    def record_event(self, event: Event) -> None:
        """Record an event with its own time; an unknown name or fact is counted and left out."""
        spec = EVENTS.get(event.name)
        if spec is None:
            with self.state.lock:
                self.state.tally.dropped += 1
            return
        facts, dropped = admit(event.facts, spec.facts, FIELDS, self.state.declared)
        admitted = Event(event.name, event.at, {**facts})
        with self.state.lock:
            self.state.tally.dropped += dropped
            self.state.tally.add(admitted)
            children = None if self._ended else self._children
            span = children.span_of(admitted) if children else self
            span.write(admitted)
            if children:
                children.close_after(admitted)
        log_event(admitted, self.state.identity)

    def write(self, event: Event) -> None:
        """Put an admitted and counted event onto this span and into the journal."""
        if EVENTS[event.name].category != "progress" and len(self._events) < MAX_EVENTS:
            self._events.append(event)
        self.state.process.write_journal(lambda journal: journal.happened(self.start, event))

    def open_model(self, slug: str, at: float, attributes: Mapping[str, Value]) -> ActiveSpan:
        """Open a model's span; its id follows from the stage's, the slug and how often the model was opened."""
        state = self.state
        with state.lock:
            repeated = state.models[slug]
            state.models[slug] += 1
        parts = (*state.id_parts, "model", slug, *((repeated,) if repeated else ()))
        revision = state.revisions.get(slug) or None
        given = {"revision": revision, **attributes, "model": slug}
        return self._child("model", at, ids.span_id(state.process.trace, *parts), given)

    def open_worker(self, number: int, at: float, attributes: Mapping[str, Value]) -> ActiveSpan:
        """Open a worker's span; its id is random, since nothing hangs below it."""
        return self._child("worker", at, getrandbits(64) or 1, {**attributes, "worker": number})

    def fail(self, error: BaseException) -> None:
        """Mark the span as failed; keep the class of the error, never its message."""
        self._status = "failed"
        self.set(error_type=error_word(error))

    def skip(self, reason: str) -> None:
        """Mark the span as skipped."""
        self._status = "skipped"
        self.set(reason=reason)

    def end(self, at: float | None = None) -> None:
        """End the span and hand it to the exporters; now, if no time is given."""
        self._ended_at = time.time() if at is None else at
        if self._children is not None:
            with self.state.lock:
                self._children.end_all(self._ended_at)
        closing: dict[str, Value] = {"status": self._status}
        if self._status != "skipped":
            measured = time.perf_counter() - self._clock if at is None else at - self.start.started_at
            closing["latency_seconds"] = measured - float(self._attributes.get("wait_seconds", 0.0))
        if self.state.tally.dropped and self.start.is_stage:
            closing["dropped_attributes"] = self.state.tally.dropped
        self.set(**closing)
        self._ended = True
        process = self.state.process
        process.write_journal(lambda journal: journal.ended(self.start, self._status, self._ended_at, self._attributes))
        process.ended(self.record(), self._events)

    def record(self) -> SpanRecord:
        """Describe the span as plain data; a span that is still open counts as ending now."""
        with self.state.lock:
            return SpanRecord(
                **vars(self.start),
                status=self._status,
                ended_at=self._ended_at or time.time(),
                attributes={"status": self._status, **self._attributes},
                **(self.state.tally.record_fields() if self.start.is_stage else {}),
            )

    def _child(self, kind: str, at: float, span_id: int, attributes: Mapping[str, Value]) -> ActiveSpan:
        name = f"rag.{self.start.stage}.{kind}"
        own = {"name": name, "span_id": f"{span_id:016x}", "parent_id": self.start.span_id, "started_at": at}
        return ActiveSpan(self.state, SpanStart(**{**vars(self.start), **own}), attributes)


class _ChildSpans:
    """The model and worker spans below a stage, made from its events: a lease opens a model's, a start a worker's.

    Compute code reports events and opens no spans. The stage's lock is held around every call.
    """

    def __init__(self, stage: ActiveSpan) -> None:
        self._stage = stage
        self._model: ActiveSpan | None = None
        self._slug: Value = None
        self._leases = 0
        self._devices: list[str] = []
        self._workers: dict[Value, ActiveSpan] = {}
        self._started = 0

    def span_of(self, event: Event) -> ActiveSpan:
        """Find the span that the event belongs to; open it if the event begins it."""
        device, model = event.facts.get("device"), event.facts.get("model")
        if event.name == "lease.acquired" and isinstance(model, str):
            self._leases += 1
            if self._model is None:
                self._model, self._slug = self._stage.open_model(model, event.at, {}), model
                self._devices = []
            self._devices.append(str(device))
            self._model.set(device=",".join(self._devices))
        elif event.name == "worker.started":
            self._end_worker(device, event.at)
            parent = self._model or self._stage
            about: dict[str, Value] = {"device": device, "model": self._slug if self._model else None}
            self._workers[device] = parent.open_worker(self._started, event.at, about)
            self._started += 1
        return self._workers.get(device) or self._model or self._stage

    def close_after(self, event: Event) -> None:
        """Add the event's numbers up, and end the spans that it closes."""
        device = event.facts.get("device")
        for span in filter(None, (self._workers.get(device), self._model)):
            if event.name == "batch.done":
                span.rows += int(event.facts.get("rows") or 0)
            elif event.name == "device.peak":
                span.peak_bytes = max(span.peak_bytes or 0, int(event.facts.get("used_bytes") or 0))
        if event.name in ("device.peak", "worker.lost"):
            self._end_worker(device, event.at)
        elif event.name == "lease.released" and self._leases:
            self._leases -= 1
            if not self._leases:
                self.end_all(event.at)

    def end_all(self, at: float) -> None:
        """End every child that is still open."""
        for device in list(self._workers):
            self._end_worker(device, at)
        if self._model is not None:
            self._end(self._model, at)
            self._model = None

    def _end_worker(self, device: Value, at: float) -> None:
        if device in self._workers:
            self._end(self._workers.pop(device), at)

    def _end(self, span: ActiveSpan, at: float) -> None:
        span.set(rows=span.rows, peak_bytes=span.peak_bytes)
        span.end(at)


@contextmanager
def entered(span: ActiveSpan) -> Iterator[ActiveSpan]:
    """Make ``span`` the current one until the block ends; an exception marks it as failed."""
    token = CURRENT.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(error)
        raise
    finally:
        CURRENT.reset(token)
        span.end()
