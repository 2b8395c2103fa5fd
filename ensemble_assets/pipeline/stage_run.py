"""A stage of one collection while it runs: settings, artefact writer, events, span. Without Dagster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ensemble_assets.artefacts.artefact import Artefact, ArtefactWriter
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.events import EventLog, EventSink
from ensemble_assets.common.stages import MODEL_STAGES
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.staleness import CODE_VERSION
from ensemble_assets.settings import Resolved, Settings
from ensemble_assets.telemetry.allowed_names import EVENTS
from ensemble_assets.telemetry.run_telemetry import RunTelemetry
from ensemble_assets.telemetry.spans import ActiveSpan


class ComputeRun(Protocol):
    """What a stage's compute context is made from."""

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
    """One stage of one collection, while it runs."""

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
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def events(self) -> EventSink:
        """Where the stage reports: onto its span, and kept for its artefact's facts."""
        return self.telemetry.sink(self.log)

    @property
    def working_folder(self) -> Path:
        """Local, of this collection, kept between runs."""
        return open_store(self.settings).working_folder(self.collection)

    @property
    def settings(self) -> Settings:
        """The resolved settings."""
        return self.resolved.settings

    def seal(self, facts: Mapping[str, Any], record: StageRecord | None = None) -> Artefact:
        """Seal the artefact and describe the stage to telemetry.

        Args:
            facts: stored with the artefact, on top of the record.
            record: status, amounts and fallbacks of the stage; becomes facts and span attributes.
        """
        if record is not None:
            made = record.as_json()
            more = made.pop("facts")
            made["device"] = record.device.label  # readers of facts take words
            facts = {**made, **more, **facts}
        if self.span is not None:
            self._describe(self.span, record, facts)
            if self.stage in MODEL_STAGES:
                self.span.set(ceiling_bytes=self.settings.device.ceiling_bytes)
        seconds = time.perf_counter() - self.started
        self.facts = {"stage": self.stage, "wall_seconds": round(seconds, 4), **facts, "run_id": self.run_id}
        self.facts[CODE_VERSION] = self.code_version
        self.facts["events"] = [event.as_json() for event in self.log.events if not _is_progress(event.name)]
        return self.writer.seal(self.facts)

    @staticmethod
    def _describe(span: ActiveSpan, record: StageRecord | None, facts: Mapping[str, Any]) -> None:
        if record is not None and record.status == "feature_disabled":
            span.skip("feature_disabled")
        elif record is not None:
            span.describe(record)
        else:
            known = {name: facts[name] for name in ("points", "files", "bytes") if name in facts}
            span.set(items=facts["items"], outcome=facts["status"], **known)


def _is_progress(event: str) -> bool:
    """Progress events are as many as batches; they stay in the journal."""
    return event in EVENTS and EVENTS[event].category == "progress"
