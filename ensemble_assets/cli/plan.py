"""``ensemble-assets plan``: what a run would take here, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ensemble_assets.cli.run import option_overrides
from ensemble_assets.collection.folders import choose, discover
from ensemble_assets.common.errors import InputError
from ensemble_assets.planning.plan_records import as_json, store_plan
from ensemble_assets.planning.planner import STAGES, CollectionPlan, Planner
from ensemble_assets.sample import SAMPLE_FOLDER
from ensemble_assets.settings import resolve

_PLAIN_WIDTH = 120
_UNITS = {"dense": "TFLOP", "sparse": "TFLOP", "rerank": "TFLOP", "fusion": "M pairs", "export": "k chunks"}
_SCALE = {"TFLOP": 1e12, "M pairs": 1e6, "k chunks": 1e3}


@click.command()
@click.option("--collections", help="Comma-separated; all sub-folders if not given.")
@click.option("--chunked-dir", metavar="DIR", help="Folder with one sub-folder of chunk files per collection.")
@click.option("--sample", is_flag=True, help="The sample collection that ships with the package.")
@click.option("--profile", help="Named choice of models (embedded, kaggle-t4x2, custom).")
@click.option("--ensemble-models", help="Dense models, comma-separated.")
@click.option("--sparse-models", help="Sparse models, comma-separated.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any option by its dotted key.")
@click.option("--recalibrate", is_flag=True, help="Measure this machine again, whatever is known of it.")
@click.option("--json", "json_output", is_flag=True, help="Print as JSON on standard output.")
def plan(
    collections: str | None, sample: bool, assignments: Any, recalibrate: bool, json_output: bool, **flags: Any
) -> int:
    """Predict what every stage of a run takes, and whether the latency ratios hold.

    Costs come from earlier runs on this machine, else from a calibration of a few seconds; for GPU models on a machine
    without GPUs from published peak rates, marked as estimates. The next run of the same content and settings records
    how far the prediction was off.
    """
    if sample:
        flags["chunked_dir"] = str(SAMPLE_FOLDER)
    overrides, sources = option_overrides(flags, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    root = Path(settings.paths.chunked_dir)
    found = discover(root).collections
    if not found:
        remedy = "Give --chunked-dir the folder of the collections, or --sample"
        raise InputError(str(root), "has no folder with chunk files", remedy)
    names = [name.strip() for name in (collections or "").split(",") if name.strip()]
    console = Console(stderr=True, highlight=False)
    planner = Planner(settings, recalibrate=recalibrate, told=lambda words: console.print(words, style="dim"))
    made = []
    for collection in choose(found, names):
        made.append(planner.plan(collection))
        store_plan(settings, made[-1])
        if not json_output:
            _show(made[-1], 1 + settings.rerank.budget_share)
    if json_output:
        click.echo(json.dumps([as_json(one) for one in made], indent=2))
    return 0


def _show(made: CollectionPlan, limit: float) -> None:
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)
    title = f"{made.collection}: {made.chunks} chunks, {made.queries} queries"
    table = Table(title=title, title_justify="left")
    for column in ("stage", "work", "seconds", "known from"):
        table.add_column(column, justify="right" if column in ("work", "seconds") else "left", no_wrap=True)
    work = {"rerank": float(made.work.rerank[made.plan.depth])}
    for stage in STAGES:
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
