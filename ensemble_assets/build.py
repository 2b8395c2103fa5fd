"""Assembles the Dagster definitions. The only assembler: the code location, the command line and tests all call it."""

from __future__ import annotations

import dagster as dg

from ensemble_assets.orchestration.assets import ALL_ASSETS, SERVING_ASSETS
from ensemble_assets.orchestration.checks import ALL_CHECKS
from ensemble_assets.orchestration.computing import Computing
from ensemble_assets.orchestration.io_managers import ArtefactIOManager
from ensemble_assets.orchestration.jobs import default_jobs
from ensemble_assets.orchestration.resources import Progress, SilentProgress, settings_form
from ensemble_assets.orchestration.run_end import TRACE_SENSORS
from ensemble_assets.settings import resolve

_STEP_PROCESSES = {"max_concurrent": 1, "start_method": {"forkserver": {}}}
"""One step at a time, each in its own process: its end returns all memory, and devices are exclusive anyway."""


def build_definitions(*, progress: Progress | None = None, computing: Computing | None = None) -> dg.Definitions:
    """Assets, jobs and resources.

    Args:
        computing: what stages compute with; tests pass one with other model factories.
        progress: hears when stages begin and end; the command line passes one.

    Raises:
        SettingsError: if the configuration of this process holds a value that is not accepted.
    """
    settings = settings_form(resolve().settings).configure_at_launch()
    return dg.Definitions(
        assets=[*ALL_ASSETS, *SERVING_ASSETS],
        asset_checks=list(ALL_CHECKS),
        jobs=list(default_jobs),
        sensors=list(TRACE_SENSORS),
        resources={
            "settings": settings,
            "artefacts": ArtefactIOManager(settings=settings),
            "progress": progress or SilentProgress(),
            "computing": computing or Computing(),
        },
        executor=dg.multiprocess_executor.configured(_STEP_PROCESSES),
    )
