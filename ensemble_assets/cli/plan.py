"""Predict a run before anything runs: ``ensemble-assets plan``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli.arguments import (
    CHUNKED_DIR,
    COLLECTIONS,
    DENSE_MODELS,
    JSON,
    PROFILE,
    SAMPLE,
    SET,
    SPARSE_MODELS,
    choose_collections,
    resolve_flags,
    split_names,
    with_options,
)
from ensemble_assets.common.stages import TIMED_STAGES

if TYPE_CHECKING:
    from ensemble_assets.planning.planner import CollectionPlan

_PLAIN_WIDTH = 120
"""Characters of a line in a file or pipe: enough for every column."""
_UNITS = {"dense": "TFLOP", "sparse": "TFLOP", "rerank": "TFLOP", "fusion": "M pairs", "export": "k chunks"}
_SCALE = {"TFLOP": 1e12, "M pairs": 1e6, "k chunks": 1e3}


@click.command()
@with_options(COLLECTIONS, CHUNKED_DIR, SAMPLE, PROFILE, DENSE_MODELS, SPARSE_MODELS, SET)
@click.option("--recalibrate", is_flag=True, help="Measure this machine again, even if its costs are known.")
@JSON
def plan(
    collections: str | None,
    sample: bool,
    assignments: tuple[str, ...],
    recalibrate: bool,
    json_output: bool,
    **flags: Any,
) -> int:
    """Predict what every stage of a run takes, and whether the latency ratios hold.

    Costs come from earlier runs on this machine, else from a calibration of a few seconds; for GPU models on a machine
    without GPUs from published peak rates, marked as estimates. The next run of the same content and settings records
    how far the prediction was off.
    """
    from rich.console import Console

    from ensemble_assets.planning.plan_records import as_json, store_plan
    from ensemble_assets.planning.planner import Planner

    settings = resolve_flags(flags, assignments, sample=sample)
    console = Console(stderr=True, highlight=False)
    planner = Planner(settings, recalibrate=recalibrate, told=lambda words: console.print(words, style="dim"))
    made = []
    for collection in choose_collections(settings, split_names(collections)):
        made.append(planner.plan(collection))
        store_plan(settings, made[-1])
        if not json_output:
            _show(made[-1], 1 + settings.rerank.budget_share)
    if json_output:
        click.echo(json.dumps([as_json(one) for one in made], indent=2))
    return 0


def _show(made: CollectionPlan, limit: float) -> None:
    from rich.table import Table

    from ensemble_assets.cli.summary import plain_or_terminal

    console = plain_or_terminal(_PLAIN_WIDTH)
    title = f"{made.collection}: {made.chunks} chunks, {made.queries} queries"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "work", "seconds", "known from"):
        table.add_column(column, justify="right" if column in ("work", "seconds") else "left", no_wrap=True)
    work = {"rerank": float(made.work.rerank[made.plan.depth])}
    for stage in TIMED_STAGES:
        unit = _UNITS[stage]
        amount = work.get(stage, getattr(made.work, stage, 0.0)) / _SCALE[unit]
        seconds = getattr(made.plan.seconds, stage)
        table.add_row(stage, f"{amount:,.3f} {unit}", f"{seconds:.2f}", made.basis[stage])
    table.add_row("total", "", f"{made.plan.seconds.total:.2f}", "")
    console.print(table)
    for line in (*_verdicts(made, limit), *made.notes):
        console.print(line, markup=False)


def _verdicts(made: CollectionPlan, limit: float) -> list[str]:
    """One sentence a ratio, and one on rerank's depth."""
    plan_made = made.plan
    lines = [f"rerank: depth {plan_made.depth} of {plan_made.requested}."]
    ratios = {"vs_sla": plan_made.seconds.vs_sla(made.plain_dense), "vs_own_dense": plan_made.seconds.vs_own_dense()}
    for name, ratio in ratios.items():
        if ratio is None:
            lines.append(f"{name}: not known; measure the plain script first: ensemble-assets baseline sla")
            continue
        deepest = plan_made.deepest[name]
        within = f"within {limit:g} down to depth {deepest}" if deepest else f"above {limit:g} at every depth"
        verdict = "holds" if ratio <= limit else "does not hold"
        lines.append(f"{name}: {ratio:.2f} at that depth, {verdict} ({within}).")
    return lines
