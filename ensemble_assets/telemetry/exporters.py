"""Send the reports of one process of a run: the journal, and spans and metrics over OTLP. None can fail a run.

OTLP is a reader of finished span records and added-up measurements. Its exporters read the standard
``OTEL_EXPORTER_OTLP_*`` variables themselves; their packages are an optional extra, imported if an endpoint is set.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramPoints
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as OtlpEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.events import Event
from ensemble_assets.common.version import __version__
from ensemble_assets.telemetry import ids
from ensemble_assets.telemetry.allowed_values import is_slug
from ensemble_assets.telemetry.journal import Journal, journal_path, read_journal
from ensemble_assets.telemetry.log import LOGGER
from ensemble_assets.telemetry.metrics import METRICS, Measurement, MetricSpec, MetricValues, check_namespace, full_name
from ensemble_assets.telemetry.span_record import ROOT, SpanRecord, SpanStart

Signal = Literal["traces", "metrics"]

_PACKAGES = {"http/protobuf": "http", "grpc": "grpc"}
_RESOURCE_KEYS = ("service.namespace", "deployment.environment.name")
_SCOPE = InstrumentationScope("ensemble_assets", __version__)


@dataclass(frozen=True)
class TelemetryOptions:
    """The destinations of telemetry; by default there are none. An unusable value raises ``SettingsError``.

    ``otlp`` holds this process's ``OTEL_*`` variables, perhaps with credentials; without an endpoint nothing is sent.
    The textfile folder is read by node-exporter's collector. A network exporter that takes longer than
    ``timeout_seconds`` is given up for this process.
    """

    journal_folder: Path | None = None
    otlp: Mapping[str, str] = field(default_factory=dict, repr=False)
    textfile_folder: Path | None = None
    pushgateway: str = field(default="", repr=False)
    metrics_enabled: bool = True
    namespace: str = "rag"
    timeout_seconds: float = 3.0

    def __post_init__(self) -> None:
        check_namespace(self.namespace)
        parts = urlsplit(self.pushgateway)
        if self.pushgateway and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise SettingsError("the Pushgateway is not given as a URL; expected one such as http://localhost:9091")
        if not 0 < self.timeout_seconds < float("inf"):
            raise SettingsError(f"the telemetry time-out is {self.timeout_seconds}; expected seconds, above 0")


def otlp_package(variables: Mapping[str, str], signal: Signal) -> str | None:
    """Choose the exporter package for a signal, ``http`` or ``grpc``; None if nothing is to be sent.

    An unknown protocol, one whose package is not installed, and an address without a scheme, are a ``SettingsError``.
    """
    disabled = _setting(variables, "OTEL_SDK_DISABLED") == "true"
    unwanted = _setting(variables, f"OTEL_{signal.upper()}_EXPORTER") == "none"
    if disabled or unwanted or not _variable(variables, signal, "ENDPOINT"):
        return None
    protocol = _variable(variables, signal, "PROTOCOL") or "http/protobuf"
    if protocol not in _PACKAGES:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol[:32]!r}; accepted are {', '.join(_PACKAGES)}")
    package = _PACKAGES[protocol]
    if package == "http" and urlsplit(_variable(variables, signal, "ENDPOINT")).scheme not in ("http", "https"):
        raise SettingsError(
            "OTEL_EXPORTER_OTLP_ENDPOINT has no http:// or https://, which protocol http/protobuf needs"
        )
    try:
        installed = importlib.util.find_spec(f"opentelemetry.exporter.otlp.proto.{package}") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise SettingsError(
            f"an OTLP endpoint is set, but opentelemetry-exporter-otlp-proto-{package} is not installed. "
            "Install it with: pip install 'ensemble-assets[otlp]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    return package


def _setting(variables: Mapping[str, str], name: str) -> str:
    return variables.get(name, "").strip().lower()


def _variable(variables: Mapping[str, str], signal: Signal, name: str) -> str:
    """Look up an OTLP variable; the signal's own wins over the general one."""
    own = variables.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
    return own or variables.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()


def otlp_exporter(variables: Mapping[str, str], signal: Signal, longest: float) -> Any:
    """Make the exporter of a signal, which reads its variables from the environment; None if nothing is to be sent.

    One export takes ``longest`` seconds at most; a shorter ``OTEL_EXPORTER_OTLP_TIMEOUT`` wins.
    """
    package = otlp_package(variables, signal)
    if package is None:
        return None
    exporters = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{package}.{signal[:-1]}_exporter")
    make = exporters.OTLPSpanExporter if signal == "traces" else exporters.OTLPMetricExporter
    timeout = float(_variable(variables, signal, "TIMEOUT") or longest)
    return make(timeout=min(timeout, longest))


def resource_of(variables: Mapping[str, str], run: str) -> Resource:
    """Describe the sender by name, version, two plain names and the run; nothing about the machine or the user."""
    pairs = (pair.partition("=")[::2] for pair in variables.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    given = {key.strip(): unquote(value.strip()) for key, value in pairs}
    plain = {key: given[key] for key in _RESOURCE_KEYS if is_slug(given.get(key))}
    name = variables.get("OTEL_SERVICE_NAME", "")
    service = name if is_slug(name) else "ensemble-assets"
    return Resource({"service.name": service, "service.version": __version__, **plain, "run_id": run})


class ProcessTelemetry:
    """The exporters of one process of a run. Made on first use, never before a fork."""

    def __init__(self, run_id: str, options: TelemetryOptions) -> None:
        self.options = options
        self.trace = ids.trace_id(run_id)
        self.run = ids.public_run_id(run_id)
        self._failures: list[tuple[str, str]] = []
        self._given_up: set[str] = set()
        folder = options.journal_folder
        self.journal = Journal(journal_path(folder, self.run)) if folder is not None else None
        if self.journal is not None:
            self._given_up |= _given_up_before(self.journal.path)
        self._spans: OtlpSpans | None = None
        self._metrics: OtlpMetrics | None = None
        self.contained("otlp_traces", self._open_spans)
        self.contained("otlp_metrics", self._open_metrics)

    def start_of(self, stage: str, at: float, *id_parts: str | int) -> SpanStart:
        """Describe the start of a stage's span, or of the root span if ``stage`` is empty; ``id_parts`` name it."""
        own = f"{ids.span_id(self.trace, *id_parts):016x}"
        parent = f"{ids.span_id(self.trace, ROOT):016x}" if stage else ""
        return SpanStart(str(id_parts[0]), own, parent, f"{self.trace:032x}", own, stage, at)

    def write_journal(self, write: Callable[[Journal], None]) -> None:
        """Write to the journal, if there is one and it works."""
        journal = self.journal
        if journal is not None:
            self.contained("journal", lambda: write(journal))

    def ended(self, record: SpanRecord, events: Sequence[Event]) -> None:
        """Take in a span that ended, with its own events, to be sent at the next flush."""
        if self._spans is not None:
            self._spans.add(record, events)

    def measure(self, measurements: Iterable[Measurement]) -> None:
        """Take in measurements, to be sent at the next flush."""
        if self._metrics is not None:
            self._metrics.values.add(measurements)

    def flush(self) -> None:
        """Send spans and measurements that wait.

        A receiver that does not take them costs ``timeout_seconds`` at most, once in a run.
        """
        began = time.monotonic()
        if self._spans is not None:
            self.contained("otlp_traces", self._spans.send)
        silent = time.monotonic() - began >= self.options.timeout_seconds / 2 and "otlp_traces" in self._given_up
        addresses = {_variable(self.options.otlp, signal, "ENDPOINT") for signal in ("traces", "metrics")}
        if self._metrics is not None:
            send = _not_asked if silent and len(addresses) == 1 else self._metrics.send
            self.contained("otlp_metrics", send)

    def contained(self, exporter: str, action: Callable[[], None]) -> None:
        """Run ``action``; if it fails, remember and log the class of the error and never try this exporter again.

        Other libraries' messages go no further, since they may hold addresses or credentials.
        """
        if exporter in self._given_up:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001  # telemetry must not fail a run, whatever breaks in it
            self._given_up.add(exporter)
            self.journal = None if exporter == "journal" else self.journal
            self._failures.append((exporter, type(error).__name__))
            words = f" ({error})" if isinstance(error, SettingsError) else ""
            LOGGER.warning("telemetry.export_failed exporter=%s error_type=%s%s", exporter, type(error).__name__, words)

    def pop_failures(self) -> list[tuple[str, str]]:
        """Return exporter and class of error of each failure since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def _open_spans(self) -> None:
        exporter = otlp_exporter(self.options.otlp, "traces", self.options.timeout_seconds)
        self._spans = exporter and OtlpSpans(exporter, resource_of(self.options.otlp, self.run))

    def _open_metrics(self) -> None:
        options = self.options
        exporter = otlp_exporter(options.otlp, "metrics", options.timeout_seconds) if options.metrics_enabled else None
        delta = _setting(options.otlp, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE") == "delta"
        self._metrics = exporter and OtlpMetrics(
            exporter, resource_of(options.otlp, self.run), options.namespace, delta
        )


def _given_up_before(journal: Path) -> set[str]:
    """Name the network exporters that failed in another process of the run."""
    failed = (
        str(event.facts.get("exporter"))
        for span in read_journal(journal, progress=False).spans
        for event in span.events
        if event.name == "telemetry.export_failed"
    )
    return {exporter for exporter in failed if exporter.startswith("otlp")}


def _not_asked() -> None:
    """Stand in for a request to a receiver that was silent a moment ago."""
    raise ConnectionError


class OtlpSpans:
    """Ended spans as OpenTelemetry has them, with the ids of their records."""

    def __init__(self, exporter: SpanExporter, resource: Resource) -> None:
        self._exporter = exporter
        self._resource = resource
        self._waiting: list[ReadableSpan] = []

    def add(self, record: SpanRecord, events: Sequence[Event]) -> None:
        """Take in a span and its own events."""
        error = record.attributes.get("error_type")
        self._waiting.append(
            ReadableSpan(
                name=record.name,
                context=_context(record.trace_id, record.span_id),
                parent=_context(record.trace_id, record.parent_id) if record.parent_id else None,
                resource=self._resource,
                attributes=dict(record.attributes),
                events=[
                    OtlpEvent(event.name, {k: v for k, v in event.facts.items() if v is not None}, int(event.at * 1e9))
                    for event in events
                ],
                status=Status(StatusCode.ERROR, str(error)) if record.status == "failed" else Status(),
                start_time=int(record.started_at * 1e9),
                end_time=int(record.ended_at * 1e9),
                instrumentation_scope=_SCOPE,
            )
        )

    def send(self) -> None:
        """Send the spans that wait; ``ConnectionError`` if the receiver did not take them."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._exporter.export(waiting) is not SpanExportResult.SUCCESS:
            raise ConnectionError


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class OtlpMetrics:
    """Measurements of this process, added up, as OpenTelemetry has them."""

    def __init__(self, exporter: MetricExporter, resource: Resource, namespace: str, delta: bool) -> None:
        self.values = MetricValues()
        self._exporter = exporter
        self._resource = resource
        self._namespace = namespace
        self._delta = delta
        self._since = time.time_ns()

    def send(self) -> None:
        """Send the sums since the process began, or since the last call where deltas are preferred.

        A receiver that does not take them is a ``ConnectionError``.
        """
        now = time.time_ns()
        metrics = [self._metric(METRICS[name], now) for name in self.values.names()]
        if not metrics:
            return
        scope = ScopeMetrics(_SCOPE, metrics, schema_url="")
        data = MetricsData([ResourceMetrics(self._resource, [scope], schema_url="")])
        if self._delta:
            self.values, self._since = MetricValues(), now
        if self._exporter.export(data) is not MetricExportResult.SUCCESS:
            raise ConnectionError

    def _metric(self, spec: MetricSpec, now: int) -> Metric:
        temporality = AggregationTemporality.DELTA if self._delta else AggregationTemporality.CUMULATIVE
        data: Sum | Gauge | HistogramPoints
        if spec.kind == "histogram":
            data = HistogramPoints(
                [
                    HistogramDataPoint(
                        dict(labels), self._since, now, sum(seen.counts), seen.total, seen.counts, spec.buckets,
                        seen.least, seen.most,
                    )
                    for labels, seen in self.values.histograms[spec.name].items()
                ],
                temporality,
            )  # fmt: skip
        else:
            points = [
                NumberDataPoint(dict(labels), self._since, now, value)
                for labels, value in self.values.numbers[spec.name].items()
            ]
            data = Sum(points, temporality, is_monotonic=True) if spec.kind == "counter" else Gauge(points)
        return Metric(full_name(self._namespace, spec.name), spec.meaning, spec.unit, data)
