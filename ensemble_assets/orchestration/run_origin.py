"""Give runs of this process the code location as origin, so that Dagster's Overview, Timeline and Jobs show them."""

from functools import partial

import dagster as dg
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

LOCATION, MODULE = "ensemble_assets", "ensemble_assets.definitions"
"""As in workspace.yaml."""

NOT_AGAIN = {"dagster/max_retries": "0"}
"""Tags of a run that the daemon does not start again: it has an origin, but its folders are those of its terminal."""


def name_origin(instance: dg.DagsterInstance, job: str) -> None:
    """Make every run of ``job`` that is created through ``instance`` one of the code location."""
    target = LoadableTargetOrigin(module_name=MODULE)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job)
    made = partial(instance.create_run_for_job, remote_job_origin=origin)  # running in process cannot pass it on
    instance.create_run_for_job = made  # type: ignore[method-assign]
