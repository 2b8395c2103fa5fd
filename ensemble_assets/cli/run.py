"""Run the pipeline in this process: ``ensemble-assets run`` and ``demo``.

No other module of the command line imports Dagster.
"""

from __future__ import annotations

import json
import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.stages import PIPELINE
from ensemble_assets.common.stopping import say_stopped, stop_when_asked
from ensemble_assets.sample import DEMO_COLLECTION, SAMPLE_FOLDER
from ensemble_assets.settings import Resolved, Settings, flatten, resolve
from ensemble_assets.settings.chosen_models import choose_models, require_consistent

if TYPE_CHECKING:
    import dagster as dg

    from ensemble_assets.artefacts.stage_record import Record
    from ensemble_assets.cli.console import CollectionOutcome, ConsoleProgress

_PRIVATE_INSTANCE = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
"""Dagster reports nothing to its makers and shows no invitation to its newsletter."""

_run_options = args.with_options(
    args.PROFILE,
    args.DENSE_MODELS,
    args.SPARSE_MODELS,
    click.option("--enable-rerank/--disable-rerank", default=None, help="CrossEncoder reranking (default on)."),
    click.option("--enable-sparse/--disable-sparse", default=None, help="Learned sparse vectors (default on)."),
    args.SET,
    args.JSON,
)


@click.command(epilog="Example: ensemble-assets run corpora --collections notes --disable-rerank")
@args.FOLDER
@args.CHUNKED_DIR
@click.option("--output-dir", metavar="DIR", help="Write bundles to DIR/<collection>/; output if not given.")
@args.COLLECTIONS
@click.option("--queries", metavar="FILE", help="Queries: JSONL, Parquet, CSV or TSV, see docs/inputs.md.")
@click.option("--qrels", metavar="FILE", help="Relevance judgements, TREC or BEIR, see docs/inputs.md.")
@click.option("--split", help="Split of queries and judgements beside the chunks, such as dev.")
@_run_options
def run(
    folder: str | None, json_output: bool, collections: str | None, assignments: tuple[str, ...], **flags: Any
) -> int:
    """Run the whole pipeline for the collections in FOLDER, which has one sub-folder for each; corpora if not given."""
    flags["chunked_dir"] = args.one_folder(folder, flags["chunked_dir"])
    return _run_and_show(args.split_names(collections), flags, assignments, json_output)


@click.command()
@click.option("--output-dir", metavar="DIR", default="output", show_default=True, help="Write the bundle below DIR.")
@_run_options
def demo(json_output: bool, assignments: tuple[str, ...], **flags: Any) -> int:
    """Run the pipeline on the sample collection that ships with the package."""
    flags["chunked_dir"] = str(SAMPLE_FOLDER)
    return _run_and_show((DEMO_COLLECTION,), flags, assignments, json_output)


def _run_and_show(
    names: tuple[str, ...], flags: dict[str, Any], assignments: tuple[str, ...], json_output: bool
) -> int:
    overrides, sources = args.option_overrides(flags, assignments)
    outcomes = run_collections(names, overrides, sources)
    from ensemble_assets.cli.console import as_json, print_summary

    if json_output:
        click.echo(json.dumps(as_json(outcomes), indent=2))
    else:
        print_summary(outcomes)
    return 0 if all(outcome.succeeded for outcome in outcomes) else 1


def run_collections(
    names: Sequence[str],
    overrides: Mapping[str, Any],
    sources: Mapping[str, str],
    assets: tuple[str, ...] = (),
    progress: ConsoleProgress | None = None,
) -> list[CollectionOutcome]:
    """Run the pipeline for each collection, one after the other. A failed one does not stop the others.

    No ``names`` mean all collections. ``assets`` are materialised alone, of collections that were run before.
    ``progress`` is told of every stage; the console is unless it is given.
    """
    resolved = resolve(overrides, override_sources=sources)
    choose_models(resolved.settings.models)
    args.require_dagster_home(resolved.environment.get("DAGSTER_HOME"))
    whole = not (names or assets)
    if not assets:
        require_consistent(resolved.settings)
        args.require_files(resolved.settings)
        chosen = args.choose_collections(resolved.settings, tuple(names), has_sample=False)
        args.require_output(resolved.settings)
        args.require_store(resolved.settings)
        names = [collection.name for collection in chosen]
    # imported after the checks: a mistake is said before a second of imports
    with args.importing():
        from ensemble_assets.build import build_definitions
        from ensemble_assets.cli.console import ConsoleProgress
        from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE, leave_output_on_terminal, name_origin
        from ensemble_assets.orchestration.partitions import COLLECTIONS as PARTITIONS
        from ensemble_assets.orchestration.resources import settings_run_config

    outcomes, progress = _left_out(resolved.settings) if whole else [], progress or ConsoleProgress()
    with ExitStack() as stack:
        with args.importing():  # Dagster imports its storage when an instance is opened
            instance = stack.enter_context(_dagster_instance(resolved.environment.get("DAGSTER_HOME")))
            definitions = build_definitions(progress=progress)
        instance.add_dynamic_partitions(str(PARTITIONS.name), list(names))
        # A run asks the database 150 times for the partition that was just added.
        instance.has_dynamic_partition = cache(instance.has_dynamic_partition)  # type: ignore[method-assign]
        name_origin(instance, RETRIEVAL_BUNDLE)
        leave_output_on_terminal(instance)
        typed = flatten(resolved.settings)
        config = settings_run_config({key: typed[key] for key in overrides}, sources)
        config["loggers"] = {"console": {"config": {"log_level": "CRITICAL"}}}
        for name in names:
            result = _materialise(name, definitions, instance, config, assets, progress)
            outcomes.append(_outcome(name, result, resolved, progress.records.get(name, [])))
        return outcomes


def _left_out(settings: Settings) -> list[CollectionOutcome]:
    """List the folders that are no collection as failed runs."""
    from ensemble_assets.cli.console import CollectionOutcome
    from ensemble_assets.collection.folders import discover

    output, refused = Path(settings.paths.output_dir), discover(Path(settings.paths.chunked_dir)).refused
    return [
        CollectionOutcome(alias, succeeded=False, bundle=output / alias, error=str(error))
        for alias, error in refused.items()
    ]


def _materialise(
    collection: str,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    config: dict[str, Any],
    assets: tuple[str, ...],
    progress: ConsoleProgress,
) -> dg.ExecuteInProcessResult:
    import dagster as dg

    from ensemble_assets.orchestration.jobs import NOT_AGAIN, RETRIEVAL_BUNDLE
    from ensemble_assets.orchestration.run_end import BY_COMMAND_LINE, end_trace

    job, run_id = definitions.resolve_job_def(RETRIEVAL_BUNDLE), str(uuid.uuid4())
    with _quiet_dagster(), stop_when_asked(lambda: _end_at_once(instance, run_id, progress)):
        try:
            result = job.execute_in_process(
                partition_key=collection,
                instance=instance,
                raise_on_error=False,
                run_config=config,
                run_id=run_id,
                tags=BY_COMMAND_LINE | NOT_AGAIN,
                asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
            )
            if _was_stopped(result):
                _say_canceled(instance, run_id)
                raise click.Abort
            return result
        finally:
            progress.close()
            end_trace(instance, run_id)


def _end_at_once(instance: dg.DagsterInstance, run_id: str, progress: ConsoleProgress) -> None:
    """Say on the terminal and in Dagster that the run was stopped, before the process ends inside a stage."""
    with suppress(Exception):  # the main thread may be closing it too
        progress.close()
    say_stopped()
    _say_canceled(instance, run_id)


def _say_canceled(instance: dg.DagsterInstance, run_id: str) -> None:
    """Have Dagster call the run canceled, also one that it calls failed: it was stopped between two stages."""
    import dagster as dg

    run = instance.get_run_by_id(run_id)
    if run is not None and run.status != dg.DagsterRunStatus.CANCELED:
        instance.report_run_canceled(run)


def _was_stopped(result: dg.ExecuteInProcessResult) -> bool:
    """Whether an interrupt ended the run, in a stage (canceled) or between two (Dagster then calls it a failure)."""
    import dagster as dg

    last = result.all_events[-1]
    reason = getattr(last.event_specific_data, "failure_reason", None)
    return last.event_type == dg.DagsterEventType.RUN_CANCELED or (
        reason is not None and reason.value == "UNEXPECTED_TERMINATION"
    )


def _outcome(
    collection: str, result: dg.ExecuteInProcessResult, resolved: Resolved, stages: list[Record]
) -> CollectionOutcome:
    from ensemble_assets.artefacts.records import FailedStage
    from ensemble_assets.cli.console import CollectionOutcome

    toggles = [stage.toggle for stage in PIPELINE if stage.toggle]
    stages = list({record.stage: record for record in stages}.values())  # the last try of each
    return CollectionOutcome(
        collection=collection,
        succeeded=result.success,
        bundle=Path(resolved.settings.paths.output_dir) / collection,
        stages=stages,
        checks=[
            {
                "check": check.check_name,
                "passed": check.passed,
                "severity": check.severity.value,
                "description": check.description,
                # a quality gate without figures had nothing to compare with
                "compared": bool(set(check.metadata) - {"judgements"}),
            }
            for check in result.get_asset_check_evaluations()
        ],
        provenance=resolved.provenance(*toggles),
        error=next((record.reason for record in stages if isinstance(record, FailedStage)), _failure(result)),
    )


_CHECK_NOT_PASSED = "DagsterAssetCheckFailedError"
"""Dagster's error of a step of checks of which one did not pass. It has no public name."""


def _failure(result: dg.ExecuteInProcessResult) -> str:
    """Describe the first failure of a step, which may be one of the checks; empty where no step failed.

    A check that ran and did not pass is no such failure: its result is shown.
    """
    from ensemble_assets.orchestration.incidents import failed_step

    steps = map(failed_step, (event for event in result.all_events if event.is_step_failure))
    failed = next((step for step in steps if step["error"] != _CHECK_NOT_PASSED), None)
    return f"{failed['step']}: {failed['reason'] or failed['error']}" if failed else ""


@contextmanager
def _dagster_instance(home: str | None) -> Iterator[dg.DagsterInstance]:
    """Open the instance of ``home`` (DAGSTER_HOME), or a private one that is gone afterwards."""
    import dagster as dg

    if home:
        with dg.DagsterInstance.get() as configured:
            ref = configured.get_ref()
        with dg.DagsterInstance.from_ref(ref._replace(settings=_without_slots(ref.settings))) as instance:
            yield instance
    else:
        # In memory: a database on disk takes most of a second of every run and is thrown away.
        with dg.DagsterInstance.ephemeral(settings=_PRIVATE_INSTANCE) as instance:
            yield instance


def _without_slots(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Have Dagster take no slot of a pool in this process.

    A run that is killed here would keep its slot until the daemon frees it, if there is one, and Dagster waits for a
    slot in a busy loop. The device lease, which the kernel frees, keeps devices exclusive.
    """
    concurrency = dict(settings.get("concurrency") or {})
    pools = {**(concurrency.get("pools") or {}), "granularity": "run"}
    return {**settings, "concurrency": {**concurrency, "pools": pools}}


@contextmanager
def _quiet_dagster() -> Iterator[None]:
    """Keep Dagster's log lines off the terminal, which shows progress and the summary only."""
    logger = logging.getLogger("dagster")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
