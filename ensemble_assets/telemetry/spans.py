"""A span that is open in this process: takes attributes and events through the allow-list, and has child spans.

Exceptions leave only the name of their class on a span. Opening stages and finishing them is ``tracing``.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import getrandbits

from opentelemetry.trace import Span, Status, StatusCode

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.events import Event, Value
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.allowed_names import ERROR_TYPES, EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.allowed_values import Declared, Scalar, admit, declare
from ensemble_assets.telemetry.child_spans import ChildSpans
from ensemble_assets.telemetry.exporters import ProcessTelemetry, nanoseconds
from ensemble_assets.telemetry.journal import SpanStart
from ensemble_assets.telemetry.log import log_event
from ensemble_assets.telemetry.span_record import SpanRecord, Tally


def error_word(error: BaseException) -> str:
    """The name of the error's class if the allow-list has it, that of its nearest base that is listed, or ``other``."""
    return next((base.__name__ for base in type(error).__mro__ if base.__name__ in ERROR_TYPES), "other")


def known_stage(stage: str, stages: tuple[str, ...]) -> str:
    """The stage itself.

    Raises:
        ValueError: if it is none of ``stages``; a mistake of the caller, not of the user.
    """
    if stage not in stages:
        raise ValueError(f"no such stage here; these are known: {', '.join(stages)}")
    return stage


@dataclass
class StageState:
    """What all spans of one stage share."""

    process: ProcessTelemetry
    declared: Declared
    tally: Tally
    identity: dict[str, Scalar]
    id_parts: tuple[str | int, ...]
    revisions: Mapping[str, str] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def declare(self, slug: str, revision: str) -> None:
        """Lets a model's slug and revision through from now on."""
        with self.lock:
            self.revisions = {**self.revisions, slug: revision}
            new = declare(model=(slug,), revision=(revision,))
            self.declared = {kind: names | new.get(kind, frozenset()) for kind, names in self.declared.items()}


_FROM_RECORD = (
    "items", "tokens", "tokens_dropped", "truncated", "precision", "peak_bytes", "precision_redone",
    "fallback_count",
)  # fmt: skip
_STANDS_IN = {"sparse": "metadata", "rerank": "fused_order"}

CURRENT: ContextVar[ActiveSpan | None] = ContextVar("ensemble_assets_span", default=None)


class ActiveSpan:
    """An open span. It is an ``EventSink``; threads may share it."""

    def __init__(self, state: StageState, start: SpanStart, attributes: dict[str, Value]) -> None:
        self.start = start
        self._state = state
        self._clock = time.perf_counter()
        self._status = "active"
        self._ended_at = 0.0
        self._ended = False
        self._attributes: dict[str, Scalar] = {}
        self._allowed = SPANS[start.name].attributes
        has_children = start.span_id == start.stage_id and start.stage in MODEL_STAGES
        self._children = ChildSpans(self) if has_children else None
        self._otel: Span = state.process.start_span(start)
        self.set(**{**attributes, **state.identity})
        state.process.journalled(lambda journal: journal.started(start, self._attributes))

    def belongs_to(self, process: ProcessTelemetry) -> bool:
        """Whether this span was opened there."""
        return self._state.process is process

    def declare_model(self, slug: str, revision: str) -> None:
        """Lets the slug and revision of a model stand on this stage's spans; neither may be a text of anybody."""
        self._state.declare(slug, revision)

    def set(self, /, **attributes: Value) -> None:
        """Sets attributes; what the allow-list does not know is counted and left out."""
        admitted, dropped = admit(attributes, self._allowed, FIELDS, self._state.declared)
        with self._state.lock:
            self._state.tally.dropped += dropped
            self._attributes.update(admitted)
        if not self._ended:
            self._otel.set_attributes(admitted)

    def describe(self, record: StageRecord) -> None:
        """Takes over what a stage says of itself: amounts, outcome, and fallbacks that no event reported."""
        facts = {name: value for name, value in record.facts.items() if name in self._allowed}
        amounts = {name: getattr(record, name) for name in _FROM_RECORD if name in self._allowed}
        if "device" in self._allowed:
            amounts["device"] = record.device.label
        if not record.peak_bytes:
            amounts.pop("peak_bytes", None)  # 0 says that nobody measured it
        self.set(**{**amounts, **facts}, outcome=record.status)
        stands_in = _STANDS_IN.get(self.start.stage, "none")
        for reason, total in record.fallback_reasons.items():
            reported = self._state.tally.reported_fallbacks(reason)
            if total > reported:
                self.emit(f"fallback.{self.start.stage}", reason=reason, source=stands_in, count=total - reported)

    def emit(self, name: str, /, **facts: Value) -> None:
        """Records one event now."""
        self.take(Event(name, time.time(), facts))

    def take(self, event: Event) -> None:
        """Records an event with its own time; an unknown name or fact is counted and left out."""
        spec = EVENTS.get(event.name)
        if spec is None:
            with self._state.lock:
                self._state.tally.dropped += 1
            return
        facts, dropped = admit(event.facts, spec.facts, FIELDS, self._state.declared)
        admitted = Event(event.name, event.at, {**facts})
        with self._state.lock:
            self._state.tally.dropped += dropped
            self._state.tally.take(admitted)
            children = None if self._ended else self._children
            target = children.before(admitted) if children else self
            target.write(admitted)
            if children:
                children.after(admitted)
        log_event(admitted, self._state.identity)

    def write(self, event: Event) -> None:
        """Puts an admitted and counted event onto this span and into the journal."""
        if EVENTS[event.name].category != "progress" and not self._ended:
            plain = {name: value for name, value in event.facts.items() if value is not None}
            self._otel.add_event(event.name, plain, nanoseconds(event.at))
        self._state.process.journalled(lambda journal: journal.happened(self.start, event))

    def replay(self, events: Iterable[Event], /, *, worker: int | None = None, **attributes: Value) -> None:
        """Takes events over that were recorded elsewhere.

        Args:
            events: with the times at which they happened.
            worker: number of the worker process that recorded them; they then get a span of their own.
            attributes: of that span.
        """
        happened = sorted(events, key=lambda event: event.at)
        if worker is None or self.start.stage not in MODEL_STAGES:
            for event in happened:
                self.take(event)
        elif happened:
            begin, end = happened[0].at, happened[-1].at
            span = self.open_worker(worker, begin, attributes)
            span.replay(happened)
            span.end(end)

    @contextmanager
    def model(self, slug: str, /, **attributes: Value) -> Iterator[ActiveSpan]:
        """A child span for one model of the stage, current while the block runs.

        Raises:
            ValueError: if it is a stage without models; a mistake of the caller, not of the user.
        """
        with entered(self.open_model(slug, time.time(), attributes)) as span:
            yield span

    @contextmanager
    def worker(self, number: int, /, **attributes: Value) -> Iterator[ActiveSpan]:
        """A child span for one worker, current while the block runs.

        Raises:
            ValueError: if it is a stage without models; a mistake of the caller, not of the user.
        """
        with entered(self.open_worker(number, time.time(), attributes)) as span:
            yield span

    def open_model(self, slug: str, at: float, attributes: dict[str, Value]) -> ActiveSpan:
        """A model's span that the caller ends; its id follows from the stage's, the slug and which time it is."""
        state = self._state
        with state.lock:
            repeated = state.models[slug]
            state.models[slug] += 1
        parts = (*state.id_parts, "model", slug, *((repeated,) if repeated else ()))
        revision = state.revisions.get(slug) or None
        given = {"revision": revision, **attributes, "model": slug}
        return self._child("model", at, ids.span_id(state.process.trace, *parts), given)

    def open_worker(self, number: int, at: float, attributes: dict[str, Value]) -> ActiveSpan:
        """A worker's span that the caller ends; its id is random."""
        return self._child("worker", at, getrandbits(64) or 1, {**attributes, "worker": number})

    def fail(self, error: BaseException) -> None:
        """Marks the span as failed; keeps the class of the error, never its message."""
        self._status = "failed"
        self.set(error_type=error_word(error))
        self._otel.set_status(Status(StatusCode.ERROR, error_word(error)))

    def skip(self, reason: str) -> None:
        """Marks the span as skipped."""
        self._status = "skipped"
        self.set(reason=reason)

    def end(self, at: float | None = None) -> None:
        """Ends the span; its record, journal line and OpenTelemetry span are complete then."""
        self._ended_at = time.time() if at is None else at
        if self._children is not None:
            with self._state.lock:
                self._children.end_all(self._ended_at)
        closing: dict[str, Value] = {"status": self._status}
        if self._status != "skipped":
            measured = time.perf_counter() - self._clock if at is None else at - self.start.started_at
            closing["latency_seconds"] = measured
        if self._state.tally.dropped and self.start.span_id == self.start.stage_id:
            closing["dropped_attributes"] = self._state.tally.dropped
        self.set(**closing)
        self._ended = True
        self._otel.end(nanoseconds(self._ended_at))
        self._state.process.journalled(
            lambda journal: journal.ended(self.start, self._status, self._ended_at, self._attributes)
        )

    def record(self) -> SpanRecord:
        """The span as plain data, now; a span that is still open counts as ending now."""
        start, tally = self.start, self._state.tally
        own = start.span_id == start.stage_id
        with self._state.lock:
            return SpanRecord(
                name=start.name,
                span_id=start.span_id,
                parent_id=start.parent_id,
                trace_id=start.trace_id,
                stage=start.stage,
                status=self._status,
                started_at=start.started_at,
                ended_at=self._ended_at or time.time(),
                attributes={"status": self._status, **self._attributes},
                events=tuple(tally.events) if own else (),
                counts=dict(tally.counts) if own else {},
                measurements=tally.measurements if own else (),
            )

    def _child(self, kind: str, at: float, span_id: int, attributes: dict[str, Value]) -> ActiveSpan:
        start = SpanStart(
            name=f"rag.{known_stage(self.start.stage, MODEL_STAGES)}.{kind}",
            span_id=f"{span_id:016x}",
            parent_id=self.start.span_id,
            trace_id=self.start.trace_id,
            stage_id=self.start.stage_id,
            stage=self.start.stage,
            started_at=at,
        )
        return ActiveSpan(self._state, start, attributes)


@contextmanager
def entered(span: ActiveSpan) -> Iterator[ActiveSpan]:
    """Makes ``span`` the current one; ends it however the block is left, and marks it failed if by an exception."""
    token = CURRENT.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(error)
        raise
    finally:
        CURRENT.reset(token)
        span.end()
