"""Materialises collections through Dagster in this process: instance, partitions, one run each."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ensemble_assets.build import build_definitions
from ensemble_assets.cli.live import ConsoleProgress
from ensemble_assets.collection.folders import choose, discover
from ensemble_assets.common.errors import InputError
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.resources import settings_run_config
from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE, end_trace
from ensemble_assets.pipeline.run_report import report_path
from ensemble_assets.settings import Resolved, flatten, resolve
from ensemble_assets.settings.sources import process_environment

_PRIVATE_INSTANCE = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}


@dataclass(frozen=True)
class RunRequest:
    """What to run: collection names (all if empty) and option overrides with the names of their sources.

    With ``assets``, only those of the job are materialised, of collections that were run before.
    """

    collections: tuple[str, ...]
    overrides: Mapping[str, Any]
    sources: Mapping[str, str]
    assets: tuple[str, ...] = ()


@dataclass(frozen=True)
class CollectionOutcome:
    """How one collection's run ended."""

    collection: str
    succeeded: bool
    bundle: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def report(self) -> Path:
        """The page about the bundle."""
        return report_path(self.bundle)


def run_collections(request: RunRequest, progress: ConsoleProgress) -> list[CollectionOutcome]:
    """Runs the pipeline for each collection; one that fails does not stop the others.

    Raises:
        SettingsError: before anything runs, for a value that is not accepted.
        InputError: if a named collection does not exist.
    """
    resolved = resolve(request.overrides, override_sources=request.sources)
    names = list(request.collections) if request.assets else _collection_names(resolved, request.collections)
    with _instance() as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), names)
        definitions = build_definitions(progress=progress)
        typed = flatten(resolved.settings)
        config = settings_run_config({key: typed[key] for key in request.overrides}, request.sources)
        config["loggers"] = {"console": {"config": {"log_level": "CRITICAL"}}}
        return [_run_one(name, definitions, instance, config, (resolved, progress), request.assets) for name in names]


def _run_one(
    name: str,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    config: dict[str, Any],
    told: tuple[Resolved, ConsoleProgress],
    assets: tuple[str, ...],
) -> CollectionOutcome:
    resolved, progress = told
    chosen = [dg.AssetKey(asset) for asset in assets] or None
    job, run_id = definitions.resolve_job_def(RETRIEVAL_BUNDLE), str(uuid.uuid4())
    with _quiet_dagster():
        try:
            result = job.execute_in_process(
                partition_key=name, instance=instance, raise_on_error=False, run_config=config, run_id=run_id,
                tags=BY_COMMAND_LINE, asset_selection=chosen,
            )  # fmt: skip
        finally:
            end_trace(instance, run_id)
    stages = progress.records.get(name, [])
    return CollectionOutcome(
        collection=name,
        succeeded=result.success,
        bundle=Path(resolved.settings.paths.output_dir) / name,
        stages=stages,
        checks=[
            {
                "check": check.check_name,
                "passed": check.passed,
                "severity": check.severity.value,
                "description": check.description,
            }
            for check in result.get_asset_check_evaluations()
        ],
        provenance=resolved.provenance("enable_sparse", "enable_rerank"),
        error=next((str(s["reason"]) for s in stages if s.get("status") == "failed"), ""),
    )


def _collection_names(resolved: Resolved, wanted: tuple[str, ...]) -> list[str]:
    root = Path(resolved.settings.paths.chunked_dir)
    found = discover(root).collections
    if not found:
        raise InputError(
            str(root), "has no folder with chunk files", "Give --chunked-dir the folder of the collections"
        )
    return [collection.name for collection in choose(found, wanted)]


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, or a private one that is gone afterwards."""
    if process_environment().get("DAGSTER_HOME"):
        with dg.DagsterInstance.get() as instance:
            yield instance
    else:
        # in memory: a database on disk takes most of a second of every run and is thrown away
        with dg.DagsterInstance.ephemeral(settings=_PRIVATE_INSTANCE) as instance:
            yield instance


@contextmanager
def _quiet_dagster() -> Iterator[None]:
    """Dagster's own log lines go to its event log only; the terminal shows progress and the summary."""
    logger = logging.getLogger("dagster")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
