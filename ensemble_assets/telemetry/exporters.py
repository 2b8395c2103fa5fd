"""The OpenTelemetry machinery of one process: tracer, journal and OTLP exporters, none of which can fail a run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from ensemble_assets import __version__
from ensemble_assets.telemetry import ids, otlp
from ensemble_assets.telemetry.journal import Journal, SpanStart, journal_path
from ensemble_assets.telemetry.log import log_failure
from ensemble_assets.telemetry.metrics import METRICS, Measurement, full_name
from ensemble_assets.telemetry.options import TelemetryOptions

_SPAN_EVENTS = 1024


class GivenIds(IdGenerator):
    """Hands the SDK the ids that this project derived from the run."""

    def __init__(self, trace: int) -> None:
        self._trace = trace
        self._next = threading.local()

    def give(self, span: int) -> None:
        """The id of the next span that this thread starts."""
        self._next.span = span

    def generate_span_id(self) -> int:
        """The given id."""
        return int(self._next.span)

    def generate_trace_id(self) -> int:
        """The run's trace id."""
        return self._trace


class ContainedExporter(SpanExporter):
    """Passes spans on until one export fails; it has then been retried by the exporter itself, up to the time-out."""

    def __init__(self, inner: SpanExporter, failed: Callable[[BaseException], None]) -> None:
        self._inner = inner
        self._failed = failed
        self._given_up = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports unless it was given up."""
        if self._given_up:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._given_up = True
            self._failed(ConnectionError())
        return result

    def shutdown(self) -> None:
        """Shuts the inner exporter down."""
        self._inner.shutdown()


class ProcessTelemetry:
    """What one process of a run needs to report. Made on first use, never before a fork.

    Args:
        run_id: the Dagster run id.
        options: where telemetry goes.
    """

    def __init__(self, run_id: str, options: TelemetryOptions) -> None:
        self.pid = os.getpid()
        self.options = options
        self.trace = ids.trace_id(run_id)
        self.run = ids.public_run_id(run_id)
        self._failures: list[tuple[str, str]] = []
        self._lost: set[str] = set()
        folder = options.journal_folder
        self.journal = Journal(journal_path(folder, self.run)) if folder is not None else None
        self._ids = GivenIds(self.trace)
        resource = otlp.resource(options.otlp, __version__, self.run)
        self._tracers = TracerProvider(
            sampler=ALWAYS_ON,
            resource=resource,
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_events=_SPAN_EVENTS),
        )
        self._metrics: OtlpMetrics | None = None
        self.contained("otlp_traces", self._send_spans)
        self.contained("otlp_metrics", lambda: self._send_metrics(resource))
        self._tracer: Tracer = self._tracers.get_tracer("ensemble_assets", __version__)

    def start_span(self, start: SpanStart) -> Span:
        """Starts the SDK's span with our ids; its parent may live in another process."""
        self._ids.give(int(start.span_id, 16))
        context = Context()
        if start.parent_id:
            parent = SpanContext(
                self.trace, int(start.parent_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
            )
            context = set_span_in_context(NonRecordingSpan(parent), context)
        return self._tracer.start_span(
            start.name,
            context=context,
            start_time=nanoseconds(start.started_at),
            record_exception=False,
            set_status_on_exception=False,
        )

    def journalled(self, write: Callable[[Journal], None]) -> None:
        """Writes to the journal, if there is one and it works."""
        journal = self.journal
        if journal is not None:
            self.contained("journal", lambda: write(journal))

    def measure(self, measurements: Iterable[Measurement]) -> None:
        """Passes measurements to the OTLP instruments, if there are any."""
        if self._metrics is not None:
            self._metrics.record(measurements)

    def contained(self, exporter: str, action: Callable[[], None]) -> None:
        """Runs ``action``; if it fails, remembers the class of the error and never tries this exporter here again."""
        if exporter in self._lost:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  # telemetry must not fail a run, whatever breaks in it
            self._lost.add(exporter)
            self.journal = None if exporter == "journal" else self.journal
            self.failed(exporter, error)

    def failed(self, exporter: str, error: BaseException) -> None:
        """Remembers and logs an exporter's failure."""
        self._failures.append((exporter, type(error).__name__))
        log_failure(exporter, error)

    def take_failures(self) -> list[tuple[str, str]]:
        """Exporter and class of error of each failure since the last call."""
        taken, self._failures = self._failures, []
        return taken

    def flush(self) -> None:
        """Sends what waits; every exporter takes ``timeout_seconds`` at most, once."""
        self._tracers.force_flush()
        if self._metrics is not None:
            self.contained("otlp_metrics", self._metrics.send)

    def _send_spans(self) -> None:
        target = self._target("traces")
        if target is not None:
            exporter = ContainedExporter(otlp.span_exporter(target), lambda error: self.failed("otlp_traces", error))
            self._tracers.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))

    def _send_metrics(self, resource: Resource) -> None:
        target = self._target("metrics")
        if target is not None and self.options.metrics_enabled:
            self._metrics = OtlpMetrics(target, self.options.namespace, resource)

    def _target(self, signal: otlp.Signal) -> otlp.OtlpTarget | None:
        target = otlp.otlp_target(self.options.otlp, signal)
        return target and replace(target, timeout=min(target.timeout, self.options.timeout_seconds))


class OtlpMetrics:
    """The table of metrics as OpenTelemetry instruments, sent when asked."""

    def __init__(self, target: otlp.OtlpTarget, namespace: str, resource: Resource) -> None:
        self._exporter = otlp.metric_exporter(target)
        self._reader = InMemoryMetricReader(preferred_temporality=target.temporality)
        meter = MeterProvider([self._reader], resource, shutdown_on_exit=False).get_meter(
            "ensemble_assets", __version__
        )
        self._record: dict[str, Callable[[float, dict[str, str]], None]] = {}
        for spec in METRICS.values():
            name = full_name(namespace, spec.name)
            if spec.kind == "histogram":
                bounds = list(spec.buckets)
                histogram = meter.create_histogram(
                    name, spec.unit, spec.meaning, explicit_bucket_boundaries_advisory=bounds
                )
                self._record[spec.name] = histogram.record
            elif spec.kind == "counter":
                self._record[spec.name] = meter.create_counter(name, spec.unit, spec.meaning).add
            else:
                self._record[spec.name] = meter.create_gauge(name, spec.unit, spec.meaning).set

    def record(self, measurements: Iterable[Measurement]) -> None:
        """Records measurements."""
        for measurement in measurements:
            self._record[measurement.metric](measurement.value, dict(measurement.labels))

    def send(self) -> None:
        """Sends what was recorded.

        Raises:
            ConnectionError: if the receiver did not take it.
        """
        data = self._reader.get_metrics_data()
        if data is not None and self._exporter.export(data) is not MetricExportResult.SUCCESS:
            raise ConnectionError


def nanoseconds(seconds: float) -> int:
    """Unix time as OpenTelemetry counts it."""
    return int(seconds * 1e9)
