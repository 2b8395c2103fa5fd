"""Report the work of a run's stages through one object, ``RunTelemetry``.

    telemetry = RunTelemetry(run_id, collection="docling", options=options)
    with telemetry.stage("dense", items=738) as span:
        span.emit("lease.acquired", device="cpu", model="all-minilm-l6-v2", wait_seconds=0.1)

It is picklable, and opens its exporters anew in every process. A string that is in no fixed
list leaves only if it is a name: a collection, a registered model's slug, or given to ``ActiveSpan.declare_model``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ensemble_assets.common.events import Event, EventLog, Value
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.models.registry import MODELS
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.allowed_values import Scalar, declare
from ensemble_assets.telemetry.exporters import ProcessTelemetry, TelemetryOptions
from ensemble_assets.telemetry.journal import journal_path, read_journal
from ensemble_assets.telemetry.prometheus import publish
from ensemble_assets.telemetry.span_record import ROOT, SpanRecord, Tally, stage_measurements
from ensemble_assets.telemetry.spans import CURRENT, ActiveSpan, StageState, entered


class RunTelemetry:
    """Telemetry of one run and one collection. A collection's name that is no slug is shown as a hash."""

    def __init__(self, run_id: str, collection: str, options: TelemetryOptions | None = None) -> None:
        self.run_id = run_id
        self.collection = ids.public_name(collection)
        self.options = options or TelemetryOptions()
        self._forget_process()

    def _forget_process(self) -> None:
        self._process: ProcessTelemetry | None = None
        self._lock = threading.RLock()
        self._open: list[ActiveSpan] = []
        self._ended: list[SpanRecord] = []
        self._opened: Counter[str] = Counter()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: another process makes its own exporters."""
        return {name: getattr(self, name) for name in ("run_id", "collection", "options")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_process()

    @contextmanager
    def stage(self, stage: str, /, *, attempt: int = 0, **attributes: Value) -> Iterator[ActiveSpan]:
        """Open the span of a stage, current while the block runs; flush everything when it ends, however it ends.

        ``attempt`` counts the step's retries in this run and makes their span ids differ.
        """
        if stage not in TIMED_STAGES:
            raise ValueError(f"no such stage; stages are {', '.join(TIMED_STAGES)}")
        process = self._here()
        with self._lock:
            occurrence = self._opened[stage]
            self._opened[stage] += 1
        id_parts = (f"rag.{stage}", self.collection, attempt, occurrence)
        identity: dict[str, Scalar] = {"run_id": process.run, "collection": self.collection, "stage": stage}
        declared = declare(collection=(self.collection,), model=MODELS, revision=())
        state = StageState(process, declared, Tally(self.collection, stage), identity, id_parts)
        start = process.start_of(stage, time.time(), *id_parts)
        span = ActiveSpan(state, start, {**attributes, "attempt": attempt})
        self._open.append(span)
        try:
            with entered(span):
                yield span
        finally:
            self._open.remove(span)
            self._finish(span)

    def finish_run(
        self, started_at: float, failed: BaseException | None = None, ended_at: float | None = None
    ) -> SpanRecord | None:
        """Record the root span, once per run, in whichever process sees the run end first; times are Unix seconds.

        Returns the span; None if the run's journal already has it.
        """
        process = self._here()
        with ExitStack() as stack:
            process.write_journal(lambda journal: stack.enter_context(journal.exclusive()))
            spans = read_journal(process.journal.path, progress=False).spans if process.journal else ()
            if any(span.name == ROOT and span.status != "unfinished" for span in spans):
                return None
            state = StageState(process, {}, Tally("", ""), {"run_id": process.run}, ())
            span = ActiveSpan(state, process.start_of("", started_at, ROOT), {})
            if failed is not None:
                span.fail(failed)
            span.end(time.time() if ended_at is None else ended_at)
            process.flush()
            return span.record()

    def record_event(self, event: Event) -> None:
        """Record an event on the current span, else on the stage opened last in this process; else it is lost."""
        current = CURRENT.get()
        if current is None or current.state.process is not self._here():
            current = self._open[-1] if self._open else None
        if current is not None:
            current.record_event(event)

    def records(self) -> list[SpanRecord]:
        """List the stage spans so far: of the whole run from its journal, or of this process if there is none."""
        process = self._here()
        if process.journal is None:
            return list(self._ended)
        spans = read_journal(process.journal.path).spans
        return [span for span in spans if span.is_stage and span.collection == self.collection]

    @property
    def journal_path(self) -> Path | None:
        """The run's journal file; None without a journal."""
        folder = self.options.journal_folder
        return journal_path(folder, ids.public_run_id(self.run_id)) if folder is not None else None

    def _here(self) -> ProcessTelemetry:
        if self._pid != os.getpid():  # a fork: locks, files and connections of the parent must not be used
            self._forget_process()
        with self._lock:
            if self._process is None:
                self._process = ProcessTelemetry(self.run_id, self.options)
            return self._process

    def _finish(self, span: ActiveSpan) -> None:
        process = self._here()
        record = span.record()
        if self.options.metrics_enabled:
            process.measure(record.measurements)
            process.measure(stage_measurements(record))
            publish(process, self.collection, [*self._ended, record], record)
        process.flush()
        for exporter, error_type in process.pop_failures():
            span.emit("telemetry.export_failed", exporter=exporter, error_type=error_type)
        self._ended.append(span.record())


class CurrentSpanSink:
    """An event sink that forwards events to the open span, and into a log."""

    def __init__(self, telemetry: RunTelemetry, log: EventLog) -> None:
        self._telemetry = telemetry
        self._log = log

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        event = Event(name, time.time(), facts)
        self._log.record(event)
        self._telemetry.record_event(event)
