"""Run a stage as a Dagster step: open it, seal its artefact, and hand Dagster the materialisation.

If the stage raises, the unfinished folder is removed and nothing is published.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.records import FailedStage
from ensemble_assets.artefacts.stage_record import Record
from ensemble_assets.collection.folders import require_name
from ensemble_assets.common.errors import EnsembleError, InputError
from ensemble_assets.common.events import Event, EventLog
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.common.stopping import die_with, stop_when_asked
from ensemble_assets.orchestration.dagster_metadata import column_metadata, described
from ensemble_assets.orchestration.failure_policy import tried_again
from ensemble_assets.orchestration.resources import SettingsForm
from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE
from ensemble_assets.pipeline.from_settings import open_store, run_telemetry
from ensemble_assets.pipeline.stage_run import Progress, StageRun

Pictures = Mapping[str, dg.MetadataValue]
Draw = Callable[[Artefact], Pictures]
"""Makes the charts and tables of a materialisation from its sealed artefact."""


def finish(
    run: StageRun, record: Record, rows: int, draw: Draw = lambda artefact: {}
) -> dg.MaterializeResult[Artefact]:
    """Seal the stage's artefact and describe it to Dagster, which plots some figures and ``rows`` over time."""
    artefact = run.seal(record)
    pictures = {**column_metadata(run.asset, artefact), **draw(artefact)}
    return dg.MaterializeResult(
        value=artefact,
        metadata=described(artefact.record, rows, pictures),
        data_version=dg.DataVersion(artefact.version),
    )


_UNWATCHED = (
    "Run monitoring is off, so a run that is cancelled or lost may hold its place and pool slot, and two runs of one "
    "collection may go at once. Copy the project's dagster.yaml into DAGSTER_HOME"
)


_SYSTEM_REFUSED = (
    "Make room, or grant the right to write, where docs/faq.md says that files go; a new run goes on from there"
)


@contextmanager
def stage_step(
    context: dg.AssetExecutionContext, form: SettingsForm, progress: Progress, stage: str
) -> Iterator[StageRun]:
    """Open a stage for the step's collection, and report its end to ``progress``.

    Any exception becomes a ``dagster.Failure`` with words that are safe to store; ``failure_policy`` says whether the
    step is tried again. An interrupt becomes ``StepStopped``, which ends the run.
    """
    resolved = form.resolved()
    collection = context.partition_key
    try:
        require_name(collection)  # a store's folder would be made for it
    except InputError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    if stage == "chunks" and not (context.instance.run_monitoring_enabled or _by_command_line(context)):
        context.log.warning(_UNWATCHED)
    asset = context.asset_key.path[-1]
    started = time.perf_counter()

    def failure(error: Exception) -> dg.Failure:
        reason = failure_words(stage, error)
        seconds = round(time.perf_counter() - started, 4)
        progress.stage_finished(collection, FailedStage(stage, "failed", wall_seconds=seconds, reason=reason))
        return dg.Failure(reason, allow_retries=tried_again(error))

    try:
        writer = open_store(resolved.settings).begin(collection, asset)
    except OSError as error:
        raise failure(error) from None
    telemetry = run_telemetry(context.run.run_id, collection, resolved.settings, resolved.environment)
    opened = telemetry.stage(stage, attempt=context.retry_number) if stage in TIMED_STAGES else nullcontext()

    def waits(holder: str) -> None:
        context.log.info(f"{stage} of {collection} waits: {holder}")
        progress.stage_waits(stage, collection, holder)

    try:
        progress.stage_started(stage, collection)
        with _end_with_the_run(), opened as span:
            code = context.assets_def.code_versions_by_key.get(context.asset_key)
            log = _Watched(progress=progress)
            run = StageRun(
                stage, collection, context.run.run_id, resolved, writer, telemetry, log, span, asset, code, waits
            )
            yield run
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        writer.discard()
        raise _stopped(context, stage) from None
    except Exception as error:  # noqa: BLE001  # the stage boundary
        writer.discard()
        raise failure(error) from None
    if run.record is not None:
        ended = run.record.status if run.record.enabled else "off"
        context.log.info(f"{stage} of {collection}: {ended}, {run.record.in_words()}")
        for warning in run.record.warnings:
            context.log.warning(f"{stage} of {collection}: {warning}")
        progress.stage_finished(collection, run.record)


@dataclass
class _Watched(EventLog):
    """A stage's log that tells ``progress`` how far the batches are."""

    progress: Progress = field(kw_only=True)
    _done: int = 0
    _total: int = 0

    def record(self, event: Event) -> None:
        """Record an event with its own time."""
        super().record(event)
        rows = event.facts.get("rows")
        if isinstance(rows, int) and event.name in ("batch.planned", "batch.done"):
            self._total += rows if event.name == "batch.planned" else 0
            self._done += rows if event.name == "batch.done" else 0
            self.progress.stage_advanced(self._done, self._total)


class StepStopped(dg.DagsterExecutionInterruptedError, dg.DagsterError):
    """An interrupt that ends the run. Dagster tries a step with a retry policy again after any other interrupt."""


StepStopped.__name__ = dg.DagsterExecutionInterruptedError.__name__  # the multiprocess executor compares the name


def _by_command_line(context: dg.AssetExecutionContext) -> bool:
    return BY_COMMAND_LINE.items() <= context.run.tags.items()


def _stopped(context: dg.AssetExecutionContext, stage: str) -> StepStopped:
    """Give the error that ends the run; a run of the command line is on its way to "canceled" then, not "failed"."""
    if _by_command_line(context):
        context.instance.report_run_canceling(context.run)
    return StepStopped(f"{stage}: stopped. Finished work is kept; a new run goes on from there")


def failure_words(stage: str, error: BaseException) -> str:
    """Describe an error in words that may be shown.

    Of an error of another library only type and place are given, since its message may quote a text.
    """
    if isinstance(error, EnsembleError):
        return str(error)
    if isinstance(error, OSError) and error.errno:
        return f"{stage}: a file or connection failed: {os.strerror(error.errno)}. {_SYSTEM_REFUSED}"
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{stage}: unexpected {type(error).__name__} ({places}). This is a fault of the program; please report it"


def _end_with_the_run() -> AbstractContextManager[None]:
    """Make this process end soon after its parent ends or asks it to, so that a run that is over frees its devices.

    It applies only to a process that Dagster started for a step: its parent is the run's fork server.
    """
    if multiprocessing.parent_process() is None:
        return nullcontext()
    die_with(os.getppid())
    return stop_when_asked(lambda: None)
