"""``RunTelemetry``: the one object through which a run's stages report; picklable, and made anew in every process.

    telemetry = RunTelemetry(run_id, collection="docling", models={"all-minilm-l6-v2": "1.0"}, options=options)
    with telemetry.stage("dense", items=738) as span:
        span.emit("lease.acquired", devices=1, wait_seconds=0.1)
        with span.model("all-minilm-l6-v2", device="cpu"):
            ...

Strings that are not from a fixed list get out only if they were declared here: collection, model slugs, revisions.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ensemble_assets.common.events import Event, EventLog, Value
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.models.registry import MODELS
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.allowed_values import Scalar, declare
from ensemble_assets.telemetry.exporters import ProcessTelemetry
from ensemble_assets.telemetry.journal import SpanStart, journal_path, read_journal
from ensemble_assets.telemetry.options import TelemetryOptions
from ensemble_assets.telemetry.publishing import publish
from ensemble_assets.telemetry.span_record import SpanRecord, Tally, stage_measurements
from ensemble_assets.telemetry.spans import CURRENT, ActiveSpan, StageState, entered, known_stage


class RunTelemetry:
    """Telemetry of one run and one collection.

    Args:
        run_id: the Dagster run id; the trace id is made from it.
        collection: the collection (partition); shown as it is if it is a slug, else as a hash.
        models: revision per model slug; both may then stand in telemetry. Slugs of registered models always may.
        options: where telemetry goes; the default writes nothing.
    """

    def __init__(
        self,
        run_id: str,
        collection: str,
        models: Mapping[str, str] | None = None,
        options: TelemetryOptions | None = None,
    ) -> None:
        self.run_id = run_id
        self.collection = ids.public_name(collection)
        self.options = options or TelemetryOptions()
        self._models = dict(models or {})
        self._forget_process()

    def _forget_process(self) -> None:
        self._process: ProcessTelemetry | None = None
        self._lock = threading.RLock()
        self._open: list[ActiveSpan] = []
        self._ended: list[SpanRecord] = []
        self._opened: dict[str, int] = {}
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: another process makes its own exporters."""
        return {name: getattr(self, name) for name in ("run_id", "collection", "options", "_models")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_process()

    @contextmanager
    def stage(self, stage: str, /, *, attempt: int = 0, **attributes: Value) -> Iterator[ActiveSpan]:
        """The span of a stage, current while the block runs; everything is flushed when it ends, however it ends.

        Args:
            stage: one of ``allow_list.TIMED_STAGES``.
            attempt: number of the step's retry in this run; keeps the span ids of retries apart.
            attributes: first attributes.
        """
        span = self._begin(stage, attempt, attributes)
        self._open.append(span)
        try:
            with entered(span):
                yield span
        finally:
            self._open.remove(span)
            self._finish(span)

    def skip(self, stage: str, reason: str = "feature_disabled") -> SpanRecord:
        """Records that a stage does not run."""
        span = self._begin(stage, 0, {})
        span.skip(reason)
        span.end()
        self._finish(span)
        return span.record()

    @contextmanager
    def worker(
        self, stage: str, number: int, /, *, attempt: int = 0, model: str = "", **attributes: Value
    ) -> Iterator[ActiveSpan]:
        """A worker's span, in the worker process; its parent is the stage's or the model's span in another process.

        Args:
            stage: one of ``allow_list.TIMED_STAGES``.
            number: worker number within the stage.
            attempt: as given to ``stage``.
            model: the model whose span is the parent; empty: the stage's.
            attributes: first attributes.
        """
        process = self._here()
        state, stage_id = self._stage_state(process, stage, attempt, 0)
        parent = ids.span_id(process.trace, *state.id_parts, "model", model) if model else int(stage_id, 16)
        start = SpanStart(
            name=f"rag.{known_stage(stage, MODEL_STAGES)}.worker",
            span_id=f"{ids.span_id(process.trace, 'worker', stage, number, os.getpid(), time.time_ns()):016x}",
            parent_id=f"{parent:016x}",
            trace_id=f"{process.trace:032x}",
            stage_id=stage_id,
            stage=stage,
            started_at=time.time(),
        )
        try:
            with entered(ActiveSpan(state, start, {**attributes, "worker": number, "model": model or None})) as span:
                yield span
        finally:
            process.measure(state.tally.measurements)
            process.flush()

    def finish_run(
        self, started_at: float, failed: BaseException | None = None, ended_at: float | None = None
    ) -> SpanRecord | None:
        """Records the root span, once per run, in whichever process sees the run end first.

        Args:
            started_at: when the run began, seconds since the epoch.
            failed: what ended it, if it failed.
            ended_at: when it ended; now, if not given.

        Returns:
            The span; None if the run's journal already has it.
        """
        process = self._here()
        with ExitStack() as stack:
            process.journalled(lambda journal: stack.enter_context(journal.exclusive()))
            if process.journal is not None and _has_root(process.journal.path):
                return None
            return self._end_root(process, started_at, failed, ended_at)

    def _end_root(
        self, process: ProcessTelemetry, started_at: float, failed: BaseException | None, ended_at: float | None
    ) -> SpanRecord:
        state = StageState(process, {}, Tally("", ""), {"run_id": process.run}, ())
        root = self._root_id(process)
        span = ActiveSpan(state, SpanStart("rag.run", root, "", f"{process.trace:032x}", root, "", started_at), {})
        if failed is not None:
            span.fail(failed)
        span.end(time.time() if ended_at is None else ended_at)
        process.flush()
        return span.record()

    def record(self, event: Event) -> None:
        """Records an event on the current span, else on the stage opened last in this process; else it is lost."""
        current = CURRENT.get()
        if current is None or not current.belongs_to(self._here()):
            current = self._open[-1] if self._open else None
        if current is not None:
            current.take(event)

    def sink(self, log: EventLog | None = None) -> CurrentSpanSink:
        """An event sink for stages: events go onto the current span and, if given, into ``log``."""
        return CurrentSpanSink(self, log)

    def records(self) -> list[SpanRecord]:
        """Stage spans so far: of the whole run as its journal tells, or of this process if there is no journal."""
        process = self._here()
        if process.journal is None:
            return list(self._ended)
        spans = read_journal(process.journal.path).spans
        return [span for span in spans if span.is_stage and span.collection == self.collection]

    @property
    def journal_path(self) -> Path | None:
        """The run's journal file, or None."""
        folder = self.options.journal_folder
        return journal_path(folder, ids.public_run_id(self.run_id)) if folder is not None else None

    def _here(self) -> ProcessTelemetry:
        if self._pid != os.getpid():  # a fork: nothing of the parent's may be used
            self._forget_process()
        with self._lock:
            if self._process is None:
                self._process = ProcessTelemetry(self.run_id, self.options)
            return self._process

    def _begin(self, stage: str, attempt: int, attributes: Mapping[str, Value]) -> ActiveSpan:
        process = self._here()
        with self._lock:
            occurrence = self._opened.get(stage, 0)
            self._opened[stage] = occurrence + 1
        state, stage_id = self._stage_state(process, known_stage(stage, TIMED_STAGES), attempt, occurrence)
        start = SpanStart(
            name=f"rag.{stage}",
            span_id=stage_id,
            parent_id=self._root_id(process),
            trace_id=f"{process.trace:032x}",
            stage_id=stage_id,
            stage=stage,
            started_at=time.time(),
        )
        return ActiveSpan(state, start, {**attributes, "attempt": attempt})

    def _stage_state(
        self, process: ProcessTelemetry, stage: str, attempt: int, occurrence: int
    ) -> tuple[StageState, str]:
        parts = (f"rag.{stage}", self.collection, attempt, occurrence)
        identity: dict[str, Scalar] = {"run_id": process.run, "collection": self.collection, "stage": stage}
        declared = declare(
            collection=(self.collection,), model=(*MODELS, *self._models), revision=tuple(self._models.values())
        )
        state = StageState(process, declared, Tally(self.collection, stage), identity, parts, self._models)
        return state, f"{ids.span_id(process.trace, *parts):016x}"

    def _root_id(self, process: ProcessTelemetry) -> str:
        return f"{ids.span_id(process.trace, 'rag.run'):016x}"

    def _finish(self, span: ActiveSpan) -> None:
        process = self._here()
        record = span.record()
        if self.options.metrics_enabled:
            process.measure(record.measurements)
            process.measure(stage_measurements(record))
            publish(process, self.collection, [*self._ended, record], record)
        process.flush()
        for exporter, error_type in process.take_failures():
            span.emit("telemetry.export_failed", exporter=exporter, error_type=error_type)
        self._ended.append(span.record())


def _has_root(journal: Path) -> bool:
    spans = read_journal(journal, progress=False).spans
    return any(span.name == "rag.run" and span.status != "unfinished" for span in spans)


class CurrentSpanSink:
    """Forwards what stages report to the span they run in, and keeps it in a log for whoever asked."""

    def __init__(self, telemetry: RunTelemetry, log: EventLog | None = None) -> None:
        self._telemetry = telemetry
        self._log = log

    def emit(self, name: str, **facts: Value) -> None:
        """Record one event now."""
        event = Event(name, time.time(), facts)
        if self._log is not None:
            self._log.extend([event])
        self._telemetry.record(event)
