"""Run a stage of one collection: its settings, artefact writer, events and span. Without Dagster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ensemble_assets.artefacts.artefact import Artefact, ArtefactWriter
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.events import EventLog, EventSink
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.settings import Resolved, Settings
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.run_telemetry import CurrentSpanSink, RunTelemetry
from ensemble_assets.telemetry.spans import ActiveSpan

R = TypeVar("R", bound=Record)

_PROGRESS = frozenset(name for name, event in EVENTS.items() if event.category == "progress")
"""Events that are written for every batch; they stay in the journal."""


class Progress:
    """Receives the progress of stages, in numbers and names only. This base class shows nothing; Dagster's UI does."""

    def stage_started(self, stage: str, collection: str) -> None:
        """Report that a stage begins."""

    def stage_advanced(self, done: int, total: int) -> None:
        """Report how many rows of the running stage are done; ``total`` may grow."""

    def stage_waits(self, stage: str, collection: str, holder: str) -> None:
        """Report that a stage waits for a device, and who has it."""

    def stage_finished(self, collection: str, record: Record) -> None:
        """Report the end of a stage; a ``FailedStage`` if it failed."""


@dataclass
class WorkClock:
    """Counts the seconds of a stage's work; it stands still while the stage waits for a device.

    ``waited`` is the seconds of waiting until now. ``waited_for`` is the holder of the device; "" if nobody.
    """

    waited: float = 0.0
    waited_for: str = ""

    def __call__(self) -> float:
        """Give the clock's seconds; only differences mean something."""
        return time.perf_counter() - self.waited


@dataclass(frozen=True)
class ComputeRun:
    """The part of a run that a compute context is made from.

    ``working_folder`` has the rows of earlier runs; None reuses and stores none. ``other_folders`` are those of the
    collections whose rows are taken too. ``tell`` gets the holder of a device that the stage waits for.
    """

    settings: Settings
    run_id: str
    events: EventSink
    span: ActiveSpan | None = None
    working_folder: Path | None = None
    clock: WorkClock = field(default_factory=WorkClock)
    tell: Callable[[str], None] = lambda holder: None
    other_folders: tuple[Path, ...] = ()

    def waits_for(self, holder: str) -> None:
        """Note the holder of the device that the stage waits for, and hand the name on."""
        self.clock.waited_for = holder
        self.tell(holder)


@dataclass
class StageRun:
    """One stage of one collection, while it runs. ``inputs`` are by asset; ``record`` is None until it is sealed."""

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
    tell: Callable[[str], None] = lambda holder: None
    clock: WorkClock = field(default_factory=WorkClock)
    inputs: Mapping[str, Artefact] = field(default_factory=dict)
    record: Record | None = None

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def events(self) -> EventSink:
        """Sink of the stage's events: onto its span and into its log."""
        return CurrentSpanSink(self.telemetry, self.log)

    @property
    def to_compute(self) -> ComputeRun:
        """The part for a compute context, with the collection's local folder unless ``encoding.reuse`` is off.

        Raises:
            SettingsError: if rows of other collections are wanted with ``encoding.reuse`` off.
        """
        settings = self.settings
        folder_of = open_store(settings).working_folder
        own, others = None, list[Path]()
        if settings.encoding.reuse:
            own = folder_of(self.collection)
            others = [folder_of(name) for name in settings.encoding.rows_from if name != self.collection]
        elif settings.encoding.rows_from:
            raise SettingsError("encoding.rows_from takes rows, and encoding.reuse is off. Leave one of both out")
        return ComputeRun(settings, self.run_id, self.events, self.span, own, self.clock, self.tell, tuple(others))

    @property
    def settings(self) -> Settings:
        """The resolved settings."""
        return self.resolved.settings

    def elapsed(self) -> float:
        """Seconds of work since the stage began; waiting for a device does not count."""
        return self.clock() - self._started

    def seal(self, record: R) -> Artefact[R]:
        """Seal the artefact with the stage's record, and describe the stage to telemetry."""
        if self.span is not None:
            self.span.describe(record)
            if self.stage in MODEL_STAGES:
                self.span.set(ceiling_bytes=self.settings.device.ceiling_bytes)
            if self.clock.waited:
                self.span.set(wait_seconds=self.clock.waited)
        sealed = replace(
            record,
            wall_seconds=round(self.elapsed(), 4),
            waited_seconds=round(self.clock.waited, 4),
            waited_for=self.clock.waited_for,
            run_id=self.run_id,
            code_version=self.code_version,
            events=tuple(event.as_json() for event in self.log.events if event.name not in _PROGRESS),
        )
        self.record = sealed
        return self.writer.seal(sealed, {asset: artefact.version for asset, artefact in self.inputs.items()})
