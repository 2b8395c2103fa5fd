"""Sensors: changed corpora, failed runs, and runs whose process is gone."""

import dagster as dg

from ensemble_assets.orchestration.sensors.corpora import corpora
from ensemble_assets.orchestration.sensors.dead_runs import dead_runs
from ensemble_assets.orchestration.sensors.incidents import incidents

ALL_SENSORS: tuple[dg.SensorDefinition, ...] = (corpora, dead_runs, incidents)
"""The sensors of the code location, apart from those that end traces (``run_end``)."""
