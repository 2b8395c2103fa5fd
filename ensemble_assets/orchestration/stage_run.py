"""The frame around every stage: where it writes, what it records, and what Dagster is told. No stage logic.

``stage_run`` opens a version folder, collects events and reports progress; ``finish`` seals the artefact and turns its
record into a materialisation. If the stage raises, the unfinished folder is discarded and nothing was published.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ensemble_assets.core.artefacts import Artefact, ArtefactWriter
from ensemble_assets.core.errors import EnsembleError
from ensemble_assets.core.events import EventLog, EventSink
from ensemble_assets.core.records import StageRecord
from ensemble_assets.orchestration.columns import column_metadata
from ensemble_assets.orchestration.failure_policy import tried_again
from ensemble_assets.orchestration.io_managers import open_store
from ensemble_assets.orchestration.reporting import run_telemetry
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.staleness import CODE_VERSION
from ensemble_assets.orchestration.step_process import end_with_the_run
from ensemble_assets.settings import Resolved, Settings
from ensemble_assets.telemetry.allow_list import EVENTS, MODEL_STAGES, STAGES
from ensemble_assets.telemetry.asset_metadata import admitted_metadata
from ensemble_assets.telemetry.spans import ActiveSpan
from ensemble_assets.telemetry.tracing import RunTelemetry


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

    def finish(
        self,
        facts: Mapping[str, Any],
        metadata: Mapping[str, Any],
        rows: int | None = None,
        record: StageRecord | None = None,
    ) -> dg.MaterializeResult[Artefact]:
        """Seals what was written and describes it to telemetry and Dagster.

        Args:
            facts: further facts; scalars become plottable metadata.
            metadata: pictures and tables.
            rows: what Dagster shows as the row count.
            record: what the stage says of itself; becomes facts and span attributes.
        """
        if record is not None:
            made = record.as_json()
            more = made.pop("facts")
            facts = {**made, **more, **facts}
        if self.span is not None:
            self._describe(self.span, record, facts)
            if self.stage in MODEL_STAGES:
                self.span.set(ceiling_bytes=int(self.settings.device.ceiling_gb * 1e9))
        seconds = time.perf_counter() - self.started
        self.facts = {"stage": self.stage, "wall_seconds": round(seconds, 4), **facts, "run_id": self.run_id}
        self.facts[CODE_VERSION] = self.code_version
        self.facts["events"] = [event.as_json() for event in self.log.events if not _is_progress(event.name)]
        artefact = self.writer.seal(self.facts)
        shown = {name: value for name, value in facts.items() if isinstance(value, (int, float, str))}
        row_count = {"dagster/row_count": rows} if rows is not None else {}
        return dg.MaterializeResult(
            value=artefact,
            metadata=admitted_metadata(
                {"wall_seconds": seconds, **shown, **row_count}, {**column_metadata(self.asset, artefact), **metadata}
            ),
            data_version=dg.DataVersion(artefact.version),
        )

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


@contextmanager
def stage_run(
    context: dg.AssetExecutionContext, form: SettingsForm, progress: Progress, stage: str
) -> Iterator[StageRun]:
    """Opens a stage for the step's collection; every outcome is reported to ``progress``.

    Raises:
        dagster.Failure: in place of any exception, with words that are safe to store; ``failure_policy`` says whether
            the step is tried again.
    """
    end_with_the_run()
    resolved = form.resolved()
    collection = context.partition_key
    asset = context.asset_key.path[-1]
    writer = open_store(resolved.settings).begin(collection, asset)
    telemetry = run_telemetry(context.run.run_id, collection, resolved.settings)
    opened = telemetry.stage(stage, attempt=context.retry_number) if stage in STAGES else nullcontext()
    progress.stage_started(stage, collection)
    started = time.perf_counter()
    try:
        with opened as span:
            code = context.assets_def.code_versions_by_key.get(context.asset_key)
            run = StageRun(
                stage, collection, context.run.run_id, resolved, writer, telemetry, EventLog(), span, asset, code
            )
            yield run
    except BaseException as error:
        writer.discard()
        seconds = round(time.perf_counter() - started, 4)
        reason = failure_words(stage, error)
        facts = {"stage": stage, "status": "failed", "wall_seconds": seconds, "reason": reason}
        progress.stage_finished(stage, collection, facts)
        if isinstance(error, Exception):
            raise dg.Failure(reason, allow_retries=tried_again(error)) from None
        raise
    progress.stage_finished(stage, collection, run.facts)


def failure_words(stage: str, error: BaseException) -> str:
    """What may be shown of an error: our own messages as they are; of any other its type and where it arose.

    Messages of foreign exceptions may quote a text, so they go no further than this process.
    """
    if isinstance(error, EnsembleError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{stage}: unexpected {type(error).__name__} ({places}). This is a fault of the program; please report it"
