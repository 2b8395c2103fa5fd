"""A stage's telemetry, as the settings say: which run and collection it belongs to and where it is written."""

from __future__ import annotations

from pathlib import Path

from ensemble_assets.export.write.manifest import TelemetrySection
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import journal_folder
from ensemble_assets.settings.sources import process_environment
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.run_telemetry import RunTelemetry
from ensemble_assets.telemetry.span_record import SpanRecord, telemetry_section


def run_telemetry(run_id: str, collection: str, settings: Settings) -> RunTelemetry:
    """Telemetry of one run and collection; by default a JSONL journal beside the bundles and no network."""
    variables = {name: value for name, value in process_environment().items() if name.startswith("OTEL_")}
    metrics = settings.metrics
    options = TelemetryOptions(
        journal_folder=journal_folder(Path(settings.paths.output_dir)),
        otlp=variables,
        textfile_folder=Path(metrics.textfile_dir) if metrics.textfile_dir else None,
        pushgateway=metrics.pushgateway,
        metrics_enabled=metrics.enabled,
        namespace=metrics.namespace,
    )
    return RunTelemetry(run_id, collection, options=options)


def manifest_section(telemetry: RunTelemetry, current: SpanRecord | None, settings: Settings) -> TelemetrySection:
    """The manifest's ``telemetry``: the run's stage spans so far, and the one that is still open."""
    records = [*telemetry.records(), *([current] if current else [])]
    made = telemetry_section(records, metrics_enabled=settings.metrics.enabled, namespace=settings.metrics.namespace)
    spans, metrics = made.pop("spans"), made.pop("metrics")
    return TelemetrySection(spans=spans, metrics=metrics, counts=made)
