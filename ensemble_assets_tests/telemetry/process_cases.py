"""The child processes of ``test_run_telemetry``; run as ``python -m``, so that they are real, separate processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.spans import entered
from ensemble_assets_tests.telemetry.full_run import MODEL, telemetry


def ends_with_exit(folder: Path, endpoint: str) -> None:
    """As Dagster's step processes end: after the stage, without any clean-up of the interpreter."""
    run = telemetry(_options(folder, endpoint))
    with run.stage("sparse", items=3) as span:
        span.emit("mitigation.split", rows=4)
    os._exit(0)


def is_killed(folder: Path, endpoint: str) -> None:
    """In the middle of a stage."""
    run = telemetry(_options(folder, endpoint))
    with run.stage("dense", items=3) as span:
        with entered(span.open_model(MODEL, time.time(), {})):
            span.emit("batch.done", rows=1)
        span.emit("mitigation.oom", rows=8)
        os.kill(os.getpid(), signal.SIGKILL)


def _options(folder: Path, endpoint: str) -> TelemetryOptions:
    return TelemetryOptions(
        journal_folder=folder, textfile_folder=folder, otlp={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    )


if __name__ == "__main__":
    {"exit": ends_with_exit, "kill": is_killed}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
