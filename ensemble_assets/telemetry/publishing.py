"""Publishing a run's metrics when a stage ends: all stages of the run so far, from all its processes, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from ensemble_assets.telemetry.exporters import ProcessTelemetry
from ensemble_assets.telemetry.journal import read_journal
from ensemble_assets.telemetry.metrics import MetricValues
from ensemble_assets.telemetry.prometheus import push, write_textfile
from ensemble_assets.telemetry.span_record import SpanRecord, metric_values

_LAST_STAGE = "export"


def publish(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord], ended: SpanRecord) -> None:
    """Writes the text file, and pushes when the run is through or a stage failed. Failures are remembered, not raised.

    Args:
        process: this process's telemetry.
        collection: as telemetry shows it.
        own: stage spans that ended in this process; what is published when there is no journal.
        ended: the stage that just ended.
    """
    options = process.options
    pushes = bool(options.pushgateway) and (ended.stage == _LAST_STAGE or ended.status == "failed")
    if options.textfile_folder is not None:
        process.contained("textfile", lambda: _write(process, collection, own))
    if pushes:
        gateway, wait = options.pushgateway, options.timeout_seconds
        process.contained(
            "pushgateway",
            lambda: push(_values(process, collection, own), options.namespace, gateway, collection, wait),
        )


def _write(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord]) -> None:
    folder = process.options.textfile_folder
    assert folder is not None
    with process.journal.exclusive() if process.journal else nullcontext():
        write_textfile(_values(process, collection, own), process.options.namespace, folder, collection)


def _values(process: ProcessTelemetry, collection: str, own: Sequence[SpanRecord]) -> MetricValues:
    if process.journal is None:
        return metric_values(own)
    spans = read_journal(process.journal.path, progress=False).spans
    return metric_values(span for span in spans if span.collection == collection)
