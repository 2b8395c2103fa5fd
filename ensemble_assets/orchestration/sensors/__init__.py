"""Sensors: changed corpora, failed runs, and housekeeping."""

import dagster as dg

from ensemble_assets.orchestration.sensors.corpora import corpora
from ensemble_assets.orchestration.sensors.housekeeping import housekeeping
from ensemble_assets.orchestration.sensors.incidents import incidents

ALL_SENSORS: tuple[dg.SensorDefinition, ...] = (corpora, housekeeping, incidents)
"""The sensors of the code location."""
