"""Run a stage as a Dagster step: open it, seal its artefact, and hand Dagster the materialisation. No stage logic.

If the stage raises, the unfinished folder is discarded and nothing is published.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.orchestration.dagster_metadata import admitted_metadata, column_metadata
from ensemble_assets.orchestration.failure_policy import tried_again
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.step_process import end_with_the_run
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.telemetry_of_run import run_telemetry


def finish(
    run: StageRun,
    facts: Mapping[str, Any],
    metadata: Mapping[str, Any],
    rows: int | None = None,
    record: StageRecord | None = None,
) -> dg.MaterializeResult[Artefact]:
    """Seal the stage's artefact and describe it to Dagster.

    Args:
        run: the open stage.
        facts: further facts; scalars become plottable metadata.
        metadata: pictures and tables.
        rows: the row count that Dagster shows.
        record: status, amounts and fallbacks of the stage.
    """
    artefact = run.seal(facts, record)
    own = {**record.as_json(), "device": record.device.label} if record is not None else {}
    described = {**own, **own.get("facts", {}), **facts}
    seconds = artefact.facts["wall_seconds"]
    shown = {name: value for name, value in described.items() if isinstance(value, (int, float, str))}
    row_count = {"dagster/row_count": rows} if rows is not None else {}
    return dg.MaterializeResult(
        value=artefact,
        metadata=admitted_metadata(
            {"wall_seconds": seconds, **shown, **row_count}, {**column_metadata(run.asset, artefact), **metadata}
        ),
        data_version=dg.DataVersion(artefact.version),
    )


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
    opened = telemetry.stage(stage, attempt=context.retry_number) if stage in TIMED_STAGES else nullcontext()
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
