"""Record the root span of a run when the run ends, so that its trace is complete.

The command line does it for its own runs, the sensor ``housekeeping`` for all others. A second attempt changes nothing.
"""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.orchestration.resources import form_values
from ensemble_assets.pipeline.from_settings import run_telemetry
from ensemble_assets.settings import Resolved, resolve

PARTITION_TAG = "dagster/partition"
BY_COMMAND_LINE = {"ensemble/by": "cli"}  # short: the list of runs draws longer tags beyond their column
"""Tags of runs that end their own trace: the daemon may resolve their relative paths otherwise."""

_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_LATE_SECONDS = 60.0
"""Most seconds between the time of an event and its place in the database of a busy machine."""


def resolve_run(run: dg.DagsterRun) -> Resolved:
    """Resolve the settings of a recorded run: those of this process, with the values of its run configuration."""
    form: Any = run.run_config
    for name in ("resources", "settings", "config"):
        form = form.get(name) or {}
    return resolve(form_values(form))


def end_trace(instance: dg.DagsterInstance, run_id: str, only_known: bool = False) -> bool:
    """Record the root span of a run that is over; return whether it was recorded now.

    False if it was recorded before, or if the run never began or had no collection. With ``only_known`` also if the
    run's journal is not where its settings say.
    """
    record = instance.get_run_record_by_id(run_id)
    if record is None or record.start_time is None or PARTITION_TAG not in record.dagster_run.tags:
        return False
    run = record.dagster_run
    resolved = resolve_run(run)
    telemetry = run_telemetry(run_id, run.tags[PARTITION_TAG], resolved.settings, resolved.environment)
    if only_known and not (telemetry.journal_path and telemetry.journal_path.is_file()):
        return False
    return telemetry.finish_run(record.start_time, _ended_by(run), record.end_time) is not None


def _ended_by(run: dg.DagsterRun) -> BaseException | None:
    """Give an error of the kind that ended the run; the stage's span has the error itself."""
    if run.status == dg.DagsterRunStatus.SUCCESS:
        return None
    return KeyboardInterrupt() if run.status == dg.DagsterRunStatus.CANCELED else dg.Failure()


def end_traces(instance: dg.DagsterInstance, since: float) -> tuple[int, float]:
    """End the traces of all runs that ended after ``since``; return their number, and the time to go on from.

    A minute before ``since`` is looked at again: events that were stored late would be missed otherwise.
    """
    over = dg.RunsFilter(statuses=_OVER, updated_after=datetime.fromtimestamp(since - _LATE_SECONDS, UTC))
    ended = 0
    for record in instance.get_run_records(over):
        since = max(since, record.update_timestamp.timestamp())
        run = record.dagster_run
        with suppress(SettingsError):  # the run's settings are not accepted any more; its trace has no root span
            ended += end_trace(instance, run.run_id, only_known=BY_COMMAND_LINE.items() <= run.tags.items())
    return ended, since
