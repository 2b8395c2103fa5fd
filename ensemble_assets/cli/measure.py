"""``ensemble-assets evaluate`` and ``baseline accept``: quality of what was run, outside the UI."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.quality_baseline import write_quality_baseline
from ensemble_assets.cli.execute import CollectionOutcome, RunRequest, run_collections
from ensemble_assets.cli.live import ConsoleProgress
from ensemble_assets.cli.run import option_overrides
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.quality_facts import accepted_baseline
from ensemble_assets.retrieval.evaluation import MEASURES
from ensemble_assets.settings import Settings, resolve

_MANIFEST = "processing_summary.json"


def target_options(command: Any) -> Any:
    """TARGET, and the options that say where its artefacts are."""
    flags = (
        click.argument("target"),
        click.option("--output-dir", metavar="DIR", help="Where the collection's bundle is; not with a bundle."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any option by its dotted key."),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


def located(
    target: str, output_dir: str | None, assignments: tuple[str, ...]
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The collection's name, and option values with their sources; a bundle's folder says where its artefacts are."""
    folder = Path(target)
    if (folder / _MANIFEST).is_file():
        resolved = folder.resolve()
        target, output_dir = resolved.name, output_dir or str(resolved.parent)
    overrides, sources = option_overrides({"output_dir": output_dir}, assignments)
    return target, overrides, sources


@click.command()
@target_options
@click.option("--json", "json_output", is_flag=True, help="Print as JSON.")
def evaluate(target: str, output_dir: str | None, assignments: tuple[str, ...], json_output: bool) -> int:
    """Measure the lists of TARGET again: a collection that was run, or its bundle's folder.

    Materialises the asset evaluation and runs its gates. Exit code 1 if it fails, or a gate of severity error does.
    """
    collection, overrides, sources = located(target, output_dir, assignments)
    store = open_store(resolve(overrides, override_sources=sources).settings)
    if not store.exists(collection, "reranked_candidates"):
        raise SettingsError(
            f"{collection}: has no ranked lists in {overrides.get('paths.output_dir', 'the output folder')}. "
            "Give the folder of a bundle, or a collection's name and --output-dir, and run it first"
        )
    request = RunRequest((collection,), overrides, sources, assets=("evaluation",))
    outcome = run_collections(request, ConsoleProgress())[0]
    measured = store.load(collection, "evaluation") if not outcome.error else None
    if json_output:
        click.echo(json.dumps(_as_json(outcome, measured), indent=2))
    else:
        _print(outcome, measured)
    return 0 if outcome.succeeded else 1


def _as_json(outcome: CollectionOutcome, measured: Artefact | None) -> dict[str, Any]:
    facts = measured.facts if measured else {}
    kept = ("status", "judged", "query_source", "items", "without_relevant", "not_retrieved", "fusion")
    rows = measured.frame("summary").to_dicts() if measured else []
    return {
        "collection": outcome.collection,
        "succeeded": outcome.succeeded,
        "error": outcome.error,
        **{name: facts[name] for name in kept if name in facts},
        "summary": rows,
        "checks": outcome.checks,
    }


def _print(outcome: CollectionOutcome, measured: Artefact | None) -> None:
    if measured is None:
        click.echo(f"{outcome.collection}: {outcome.error}", err=True)
        return
    facts = measured.facts
    kind = "judgements from a file" if facts["judged"] else "pseudo-judgements of derived probes"
    click.echo(f"{outcome.collection}: {facts['items']} judged queries ({kind})")
    runs = [name.removesuffix(" nDCG@10") for name in facts if name.endswith(" nDCG@10")]
    if runs:
        click.echo(f"  {'':10}" + "".join(f"{measure:>12}" for measure in MEASURES))
    for run in runs:
        click.echo(f"  {run:10}" + "".join(f"{facts[f'{run} {measure}']:12.4f}" for measure in MEASURES))
    for check in outcome.checks:
        state = "ok" if check["passed"] else check["severity"].lower()
        click.echo(f"  {state:8}{check['check']}: {check['description']}")


@click.command()
@target_options
def accept(target: str, output_dir: str | None, assignments: tuple[str, ...]) -> int:
    """Accept the quality of TARGET as what later runs are held against: a collection that was run, or its bundle.

    Writes one small text file, <checks.baselines_dir>/<collection>.quality.json, to be committed and reviewed: means,
    nDCG@10 of every query by its public id, and the models, settings and versions that it comes from.
    """
    collection, overrides, sources = located(target, output_dir, assignments)
    settings: Settings = resolve(overrides, override_sources=sources).settings
    made = accepted_baseline(
        open_store(settings), collection, datetime.now().astimezone().isoformat(timespec="seconds")
    )
    path = write_quality_baseline(Path(settings.checks.baselines_dir), made)
    means = ", ".join(f"{run} {values[made.measure]:.4f}" for run, values in made.means.items())
    click.echo(f"{path}: {made.measure} {means} over {len(next(iter(made.per_query.values())))} queries")
    return 0
