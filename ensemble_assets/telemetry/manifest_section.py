"""The ``telemetry`` section of the run manifest (``processing_summary.json``), made from the same records as the spans.

Layout: CONTRACT v4.1, section ``telemetry``. Pure; the export stage puts it into the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ensemble_assets.telemetry.allowed_names import EVENTS, Category
from ensemble_assets.telemetry.metrics import check_namespace, full_name
from ensemble_assets.telemetry.span_record import SpanRecord, latest_tries, metric_values

_COUNTED: Mapping[str, frozenset[Category]] = {
    "lease_events_recorded": frozenset({"lease"}),
    "batch_progress_events_recorded": frozenset({"progress"}),
    "mitigation_events_recorded": frozenset({"mitigation", "fallback"}),
}


def telemetry_section(
    records: Iterable[SpanRecord], *, metrics_enabled: bool = True, namespace: str = "rag"
) -> dict[str, Any]:
    """The manifest's ``telemetry`` object.

    Args:
        records: stage spans of the run, from artefact facts, a journal or memory; of several for one stage (retries)
            the one that started last counts. Other spans are ignored.
        metrics_enabled: whether metrics were recorded.
        namespace: start of every metric name.

    Returns:
        ``spans`` by span name, ``metrics`` by stage, and the three event counts.
    """
    stages = latest_tries(records)
    return {
        "spans": {record.name: _span(record) for record in stages},
        "metrics": {record.stage: _metrics(record, metrics_enabled, check_namespace(namespace)) for record in stages},
        **{key: _count(stages, categories) for key, categories in _COUNTED.items()},
    }


def _span(record: SpanRecord) -> dict[str, Any]:
    skipped = record.status == "skipped"
    reason = {"reason": record.attributes.get("reason", "feature_disabled")} if skipped else {}
    return {
        "span_id": record.span_id,
        "status": "skipped" if skipped else "active",
        **reason,
        "attributes": dict(record.attributes),
        "timestamp": datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="microseconds"),
    }


def _metrics(record: SpanRecord, enabled: bool, namespace: str) -> dict[str, Any]:
    if record.status == "skipped":
        return {"status": "skipped", "reason": record.attributes.get("reason", "feature_disabled"), "metrics": []}
    if not enabled:
        return {"status": "skipped", "reason": "metrics_disabled", "metrics": []}
    names = metric_values([record]).names()
    return {"status": "emitted", "metrics": [full_name(namespace, name) for name in names]}


def _count(stages: Iterable[SpanRecord], categories: frozenset[Category]) -> int:
    counts = (item for record in stages for item in record.counts.items() if item[0] in EVENTS)
    return sum(number for name, number in counts if EVENTS[name].category in categories)
