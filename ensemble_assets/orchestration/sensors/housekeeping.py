"""Sensor ``housekeeping``: everything that goes on by itself and runs no collection."""

import time
from pathlib import Path

import dagster as dg

from ensemble_assets.collection.folders import discover
from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.run_end import end_traces
from ensemble_assets.orchestration.sensors.dead_runs import end_dead_runs
from ensemble_assets.settings import resolve


@dg.sensor(
    name="housekeeping",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="On by itself, and runs nothing: lists every folder as a collection, ends the traces of runs, and "
    "marks runs as failed whose process is gone.",
)
def housekeeping(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Do each task, also where another one finds nothing to do or cannot be done."""
    dead = end_dead_runs(context.instance)
    traces, since = end_traces(context.instance, float(context.cursor or time.time()))
    fresh, problem = _folders_without_partition(context.instance)
    done = {"marked as failed": dead, "added": fresh, "traces ended": [str(traces)] if traces else []}
    said = [f"{what}: {', '.join(names)}" for what, names in done.items() if names]
    return dg.SensorResult(
        skip_reason=". ".join([*said, *problem]) or "nothing to do",
        cursor=str(since),
        dynamic_partitions_requests=[COLLECTIONS.build_add_request(fresh)] if fresh else [],
    )


def _folders_without_partition(instance: dg.DagsterInstance) -> tuple[list[str], list[str]]:
    """List the collections that Dagster does not know yet, and the reason why they cannot be listed."""
    try:
        collections = discover(Path(resolve().settings.paths.chunked_dir)).collections
    except EnsembleError as error:
        return [], [str(error)]
    partitions = set(instance.get_dynamic_partitions(str(COLLECTIONS.name)))
    return [each.name for each in collections if each.name not in partitions], []
