"""Sensor ``full_after_dense_only``: the weekly comparison's second half, once the first half of a collection is done.

It acts on runs that the schedule ``weekly_parity`` asked for and on no others, so it can stay switched on.
"""

import dagster as dg

from ensemble_assets.orchestration.jobs import ANEW, RETRIEVAL_BUNDLE, TRIGGER_TAG, AssetJob, reason_tags
from ensemble_assets.orchestration.resources import settings_run_config
from ensemble_assets.orchestration.schedules import WEEKLY


def full_after_reference(reference: AssetJob, full: AssetJob) -> dg.SensorDefinition:
    """The sensor.

    Args:
        reference: the job ``dense_only``.
        full: the job ``retrieval_bundle``.
    """

    @dg.run_status_sensor(
        name="full_after_dense_only",
        run_status=dg.DagsterRunStatus.SUCCESS,
        monitored_jobs=[reference],
        request_job=full,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="After a dense_only run of weekly_parity, runs the same collection in full.",
    )
    def full_after_dense_only(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
        return follow_up(context.dagster_run)

    return full_after_dense_only


def follow_up(run: dg.DagsterRun) -> dg.RunRequest | dg.SkipReason:
    """The full run of the same collection."""
    collection = run.tags.get("dagster/partition")
    if run.tags.get(TRIGGER_TAG) != WEEKLY or not collection:
        return dg.SkipReason("not a run of the weekly comparison")
    return dg.RunRequest(
        run_key=run.run_id,
        job_name=RETRIEVAL_BUNDLE,
        partition_key=collection,
        run_config=settings_run_config({ANEW: False}, {ANEW: f"schedule {WEEKLY}"}),
        tags=reason_tags(WEEKLY, ("comparison",)),
    )
