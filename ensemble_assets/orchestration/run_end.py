"""Record the root span of a run when the run ends, so that its trace is complete.

The command line does it for its own runs, the sensors below for all others. A second attempt changes nothing.
"""

from typing import Any

import dagster as dg

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.orchestration.resources import form_values
from ensemble_assets.pipeline.from_settings import run_telemetry
from ensemble_assets.settings import Resolved, resolve

PARTITION_TAG = "dagster/partition"
BY_COMMAND_LINE = {"ensemble_assets/traced_by": "command line"}
"""Tags of runs that end their own trace: the daemon may resolve their relative paths otherwise."""


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


def _sensor(status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=f"trace_end_of_{status.value.lower()}_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Records the root span of the run's trace.",
    )
    def end(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        try:
            run = context.dagster_run
            done = end_trace(context.instance, run.run_id, only_known=BY_COMMAND_LINE.items() <= run.tags.items())
        except SettingsError:
            return dg.SkipReason("The run's settings are not accepted any more; its trace has no root span.")
        return dg.SkipReason("Root span recorded." if done else "The trace had ended already.")

    return end


TRACE_SENSORS = tuple(
    _sensor(status)
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
)
