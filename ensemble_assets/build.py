"""Assemble the Dagster definitions for the code location, the command line and the tests."""

from __future__ import annotations

import dagster as dg

from ensemble_assets.orchestration.assets import ALL_ASSETS, SERVING_ASSETS
from ensemble_assets.orchestration.checks import ALL_CHECKS
from ensemble_assets.orchestration.io_manager import artefacts
from ensemble_assets.orchestration.jobs import build_jobs
from ensemble_assets.orchestration.resources import settings_resource
from ensemble_assets.orchestration.schedules import nightly_schedule
from ensemble_assets.orchestration.sensors import ALL_SENSORS
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import Progress
from ensemble_assets.settings import resolve

PRELOADED = ["ensemble_assets.definitions", "dagster._core.storage.sqlite_storage"]
"""Modules to import once a run, before the processes of its steps are forked.

Dagster names the definitions by itself, but imports its storage in every process: half a second of each step. A name
that another version lacks is passed over.
"""

_STEP_PROCESSES = {"max_concurrent": 1, "start_method": {"forkserver": {"preload_modules": PRELOADED}}}
"""One step at a time, each in its own process, whose end returns all memory. Devices are exclusive anyway."""


def build_definitions(*, progress: Progress | None = None, computing: Computing | None = None) -> dg.Definitions:
    """Define assets, checks, jobs, schedules, sensors and resources.

    The command line hands in its ``progress``. Tests hand in a ``computing`` with other model factories.
    """
    current = resolve().settings
    assets = [*ALL_ASSETS, *SERVING_ASSETS]
    specs = [spec for asset in assets for spec in asset.specs]
    checks = [key for made in ALL_CHECKS for key in made.check_keys]
    return dg.Definitions(
        assets=assets,
        asset_checks=list(ALL_CHECKS),
        jobs=build_jobs(current),
        schedules=[nightly_schedule(current, {spec.key.path[-1]: spec.code_version or "" for spec in specs}, checks)],
        sensors=list(ALL_SENSORS),
        resources={
            "settings": settings_resource(current),
            "artefacts": artefacts,
            "progress": progress or Progress(),
            "computing": computing or Computing(),
        },
        executor=dg.multiprocess_executor.configured(_STEP_PROCESSES),
    )
