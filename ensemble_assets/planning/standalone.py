"""A stage outside of Dagster, for calibration and benchmarks: the settings and events that computing asks a run for."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from ensemble_assets.common.events import EventLog
from ensemble_assets.settings import Settings
from ensemble_assets.telemetry.spans import ActiveSpan


@dataclass
class StandaloneRun:
    """What ``Computing.context`` needs of a ``StageRun``; nothing is written, reported or reused from earlier runs."""

    stage: str
    settings: Settings
    collection: str = "standalone"
    run_id: str = field(default_factory=lambda: secrets.token_hex(16))
    events: EventLog = field(default_factory=EventLog)
    span: ActiveSpan | None = None

    def __post_init__(self) -> None:
        self.settings = replace(self.settings, encoding=replace(self.settings.encoding, reuse=False))

    @property
    def working_folder(self) -> Path:
        """Never asked for, since nothing is reused."""
        raise NotImplementedError
