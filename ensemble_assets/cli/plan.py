"""Predict a run before anything runs: ``ensemble-assets plan``."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.stage_times import LIMIT_RATIO
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.settings.chosen_models import choose_models

if TYPE_CHECKING:
    from ensemble_assets.planning.planner import CollectionPlan

_PLAIN_WIDTH = 120
"""Characters of a line in a file or pipe: enough for every column."""
_UNITS = {"dense": "tokens", "sparse": "tokens", "fusion": "pairs", "rerank": "tokens", "export": "chunks"}


@click.command()
@args.with_options(
    args.FOLDER, args.COLLECTIONS, args.CHUNKED_DIR, args.SAMPLE, args.PROFILE, args.DENSE_MODELS,
    args.SPARSE_MODELS, args.SET,
)  # fmt: skip
@click.option("--recalibrate", is_flag=True, help="Measure this machine again, even if its costs are known.")
@args.JSON
def plan(
    folder: str | None,
    collections: str | None,
    sample: bool,
    assignments: tuple[str, ...],
    recalibrate: bool,
    json_output: bool,
    **flags: Any,
) -> int:
    """Predict the seconds of every stage of a run of FOLDER, and whether the latency ratios hold.

    Costs come from earlier runs on this machine, else from a calibration of a few seconds. The next run of the same
    content and settings records how far the prediction was off. A named model that cannot run is the error that it is
    in a run. Where a run does without one of a profile's models, so does the plan, and says why.
    """
    flags["chunked_dir"] = args.one_folder(folder, flags["chunked_dir"])
    settings = args.resolve_flags(flags, assignments, sample=sample)
    choose_models(settings.models)
    chosen = args.choose_collections(settings, args.split_names(collections))
    # imported after the checks: a mistake is said before a second of imports
    from rich.console import Console

    from ensemble_assets.pipeline.compute_context import Computing
    from ensemble_assets.pipeline.from_settings import require_named_models
    from ensemble_assets.planning.history import store_plan
    from ensemble_assets.planning.planner import plan_collection

    require_named_models(settings)
    announce = partial(Console(stderr=True, highlight=False).print, style="dim")
    plans = []
    for collection in chosen:
        planned = plan_collection(settings, collection, Computing(), recalibrate=recalibrate, announce=announce)
        plans.append(planned.as_json())
        store_plan(settings, plans[-1])
        if not json_output:
            _print_plan(planned)
    if json_output:
        click.echo(json.dumps(plans, indent=2))
    return 0


def _print_plan(planned: CollectionPlan) -> None:
    from rich.table import Table

    from ensemble_assets.cli.console import plain_or_terminal

    console = plain_or_terminal(_PLAIN_WIDTH)
    title = f"{planned.collection}: {planned.chunks} chunks, {planned.queries} queries"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "work", "seconds", "known from"):
        table.add_column(column, justify="right" if column in ("work", "seconds") else "left", no_wrap=True)
    for stage in TIMED_STAGES:
        work = f"{planned.work[stage]:,.0f} {_UNITS[stage]}"
        table.add_row(stage, work, f"{getattr(planned.seconds, stage):.2f}", planned.basis[stage])
    table.add_row("total", "", f"{planned.seconds.total:.2f}", "")
    console.print(table)
    for sentence in planned.without.values():
        console.print(f"{sentence}.", markup=False)
    console.print(f"rerank: depth {planned.depth} of {planned.requested_depth}.")
    for name, ratio in planned.ratios.items():
        verdict = "unknown; measure the plain script first: ensemble-assets baseline sla"
        if ratio is not None:
            verdict = f"{ratio:.2f}, {'within' if ratio <= LIMIT_RATIO else 'above'} the limit of {LIMIT_RATIO:g}."
        console.print(f"{name}: {verdict}", markup=False)
