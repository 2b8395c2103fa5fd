"""Define the jobs that can be launched. None of them needs a run configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import dagster as dg
from dagster._core.definitions.repository_definition.valid_definitions import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from upath import UPath

from ensemble_assets.orchestration.resources import settings_run_config
from ensemble_assets.settings import Settings

AssetJob: TypeAlias = Any
"""Return type of ``define_asset_job``, which Dagster exports under no name."""

RETRIEVAL_BUNDLE = "retrieval_bundle"
DENSE_ONLY = "dense_only"
EVALUATE = "evaluate"
UPLOAD = "upload"

REFERENCE_FOLDER = ".dense_only"
"""Folder below the output folder for bundles and artefacts of ``dense_only``, which never replaces a bundle in use."""

REASON_TAG = "ensemble/reason"
TRIGGER_TAG = "ensemble/trigger"
CONTENT_TAG = "ensemble/content"

LOCATION, MODULE = "ensemble_assets", "ensemble_assets.definitions"
"""As in workspace.yaml."""

NOT_AGAIN = {"dagster/max_retries": "0"}
"""Tags of a run that the daemon does not start again: it has an origin, but its folders are those of its terminal."""

_BUNDLE = dg.AssetSelection.groups("inputs", "first_stage", "ranking", "quality", "bundles")


def build_jobs(settings: Settings) -> list[AssetJob]:
    """Define the jobs of the code location; ``dense_only`` writes below the output folder of ``settings``."""
    return [
        dg.define_asset_job(
            RETRIEVAL_BUNDLE,
            selection=_BUNDLE,
            description="Everything, sparse and rerank included, for one collection.",
        ),
        dg.define_asset_job(
            DENSE_ONLY,
            selection=_BUNDLE,
            config=dense_only_config(settings),
            description=(
                "The dense stage alone: sparse and rerank off, nothing reused, into its own folder beside the bundles."
            ),
        ),
        dg.define_asset_job(
            UPLOAD,
            selection=dg.AssetSelection.assets("qdrant_collection"),
            config=settings_run_config({"qdrant.enabled": True}, {"qdrant.enabled": f"job {UPLOAD}"}),
            description="The bundle as it is into Qdrant: embedded storage unless a server is set.",
        ),
        dg.define_asset_job(
            EVALUATE,
            selection=dg.AssetSelection.assets("evaluation"),
            description="Quality figures and their gates for what was materialised last.",
        ),
    ]


def reference_paths(settings: Settings) -> dict[str, str]:
    """Name the folders that ``dense_only`` writes to, by option key."""
    paths = settings.paths
    folders = {"paths.output_dir": str(Path(paths.output_dir) / REFERENCE_FOLDER)}
    if paths.artifacts_dir:
        folders["paths.artifacts_dir"] = str(UPath(paths.artifacts_dir) / REFERENCE_FOLDER)
    return folders


def dense_only_config(settings: Settings) -> dict[str, Any]:
    """Make the run configuration of ``dense_only``."""
    off = {"enable_sparse": False, "enable_rerank": False, "encoding.reuse": False}
    values: Mapping[str, Any] = off | reference_paths(settings)
    return settings_run_config(values, dict.fromkeys(values, f"job {DENSE_ONLY}"))


def reason_tags(trigger: str, reasons: Collection[str], content: str | None = None) -> dict[str, str]:
    """Make the tags of a run that a sensor or schedule asks for: its name, and its reasons."""
    tags = {TRIGGER_TAG: trigger, REASON_TAG: ", ".join(reasons)[:200]}
    return tags | ({CONTENT_TAG: content} if content else {})


def name_origin(instance: dg.DagsterInstance, job: str) -> None:
    """Make every run of ``job`` that is created through ``instance`` one of the code location."""
    target = LoadableTargetOrigin(module_name=MODULE)
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION)
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job)
    made = partial(instance.create_run_for_job, remote_job_origin=origin)  # running in process cannot pass it on
    instance.create_run_for_job = made  # type: ignore[method-assign]


def leave_output_on_terminal(instance: dg.DagsterInstance) -> None:
    """Make Dagster copy nothing that steps print.

    It has two helper processes a step for that. At Ctrl-C a terminal interrupts them too, and each prints a traceback.
    """
    instance.compute_log_manager.capture_logs = NoOpComputeLogManager().capture_logs  # type: ignore[method-assign]
