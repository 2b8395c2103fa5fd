"""Sensors: changed corpora, failed runs, runs whose process is gone, and the second half of the weekly comparison."""

from collections.abc import Sequence

import dagster as dg

from ensemble_assets.orchestration.jobs import DENSE_ONLY, RETRIEVAL_BUNDLE, AssetJob
from ensemble_assets.orchestration.sensors.corpora import corpora
from ensemble_assets.orchestration.sensors.dead_runs import dead_runs
from ensemble_assets.orchestration.sensors.full_after_reference import full_after_reference
from ensemble_assets.orchestration.sensors.incidents import incidents


def build_sensors(jobs: Sequence[AssetJob]) -> list[dg.SensorDefinition]:
    """Every sensor of the code location, over its jobs."""
    by_name = {job.name: job for job in jobs}
    return [corpora, dead_runs, full_after_reference(by_name[DENSE_ONLY], by_name[RETRIEVAL_BUNDLE]), incidents]
