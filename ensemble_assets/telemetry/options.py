"""Where telemetry goes. Values only; ``settings`` reads them from files and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.telemetry.metrics import check_namespace
from ensemble_assets.telemetry.otlp import otlp_target


@dataclass(frozen=True)
class TelemetryOptions:
    """Exporters and the metrics switch. The default writes nothing anywhere.

    Attributes:
        journal_folder: folder of the run's JSONL journal (``telemetry-<run>.jsonl``); None: no journal.
        otlp: the ``OTEL_*`` variables; without an endpoint nothing is sent. May hold credentials, so it is not shown.
        textfile_folder: folder that node-exporter's textfile collector reads; None: no text file.
        pushgateway: URL of a Prometheus Pushgateway, or empty.
        metrics_enabled: whether metrics are recorded and exported.
        namespace: start of every metric name.
        timeout_seconds: longest wait for one network exporter; it is then given up for this process.

    Raises:
        SettingsError: at construction, if a value cannot be used.
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
        otlp_target(self.otlp, "traces")
        otlp_target(self.otlp, "metrics")
