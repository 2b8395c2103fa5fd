"""Run a stage of one collection: its settings, artefact writer, events and span. Without Dagster."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from ensemble_assets.artefacts.artefact import Artefact, ArtefactWriter
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.common.events import EventLog, EventSink
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.settings import Resolved, Settings
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.run_telemetry import RunTelemetry
from ensemble_assets.telemetry.spans import ActiveSpan

R = TypeVar("R", bound=Record)


class ComputeRun(Protocol):
    """The part of a run that a compute context is made from."""

    @property
    def settings(self) -> Settings:
        """The resolved settings."""
        ...

    @property
    def events(self) -> EventSink:
        """Where the stage reports."""
        ...

    @property
    def run_id(self) -> str:
        """Identity of the run, noted in leases."""
        ...

    @property
    def span(self) -> ActiveSpan | None:
        """The stage's open span."""
        ...

    @property
    def working_folder(self) -> Path:
        """Local folder of the collection, kept between runs."""
        ...


@dataclass
class StageRun:
    """One stage of one collection, while it runs.

    Attributes:
        log: events of the stage, kept for its record.
        span: None for a stage without a span.
        record: the sealed record; None until then.
    """

    stage: str
    collection: str
    run_id: str
    resolved: Resolved
    writer: ArtefactWriter
    telemetry: RunTelemetry
    log: EventLog
    span: ActiveSpan | None
    asset: str
    code_version: str | None = None
    started: float = field(default_factory=time.perf_counter)
    record: Record | None = None

    @property
    def events(self) -> EventSink:
        """Sink of the stage's events: onto its span and into its log."""
        return self.telemetry.sink(self.log)

    @property
    def working_folder(self) -> Path:
        """Local folder of this collection, kept between runs."""
        return open_store(self.settings).working_folder(self.collection)

    @property
    def settings(self) -> Settings:
        """The resolved settings."""
        return self.resolved.settings

    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self.started

    def seal(self, record: R) -> Artefact[R]:
        """Seal the artefact with the stage's record, and describe the stage to telemetry."""
        if self.span is not None:
            self.span.describe(record)
            if self.stage in MODEL_STAGES:
                self.span.set(ceiling_bytes=self.settings.device.ceiling_bytes)
        sealed = replace(
            record,
            wall_seconds=round(self.elapsed(), 4),
            run_id=self.run_id,
            code_version=self.code_version,
            events=tuple(event.as_json() for event in self.log.events if not _is_progress(event.name)),
        )
        self.record = sealed
        return self.writer.seal(sealed)


def _is_progress(event: str) -> bool:
    """Whether an event is written for every batch; such events stay in the journal."""
    return event in EVENTS and EVENTS[event].category == "progress"
