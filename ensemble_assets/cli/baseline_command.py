"""``ensemble-assets baseline``: measures or accepts what later runs are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ensemble_assets.artefacts.latency_baseline import SlaBaseline, store_baseline
from ensemble_assets.cli.run import option_overrides
from ensemble_assets.collection.folders import Collection, choose, discover
from ensemble_assets.common.errors import InputError
from ensemble_assets.pipeline.collections import chunks_of
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.sample import SAMPLE_FOLDER
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import baselines_folder


@click.group()
def baseline() -> None:
    """What later runs are compared with."""


@baseline.command()
@click.argument("collection", required=False)
@click.option("--chunked-dir", metavar="DIR", help="Folder with one sub-folder of chunk files per collection.")
@click.option("--sample", is_flag=True, help="The sample collection that ships with the package.")
@click.option("--profile", help="Named choice of models (embedded, kaggle-t4x2, custom).")
@click.option("--ensemble-models", help="Dense models, comma-separated.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any option by its dotted key.")
@click.option("--repeats", default=3, show_default=True, help="Measurements per model; fewer where one takes long.")
@click.option("--json", "json_output", is_flag=True, help="Print as JSON on standard output.")
def sla(collection: str | None, repeats: int, sample: bool, json_output: bool, assignments: Any, **flags: Any) -> int:
    """Measure what a plain sentence-transformers script takes, for COLLECTION or for all.

    Runs SentenceTransformer.encode at its default settings over the chunks, once per dense model, and stores the
    seconds for this machine. Runs are then held against it (vs_sla, see docs/performance.md). Needs a quiet machine.
    """
    from ensemble_assets.compute.stages.plain_baseline import measure_baseline

    if sample:
        flags["chunked_dir"] = str(SAMPLE_FOLDER)
    overrides, sources = option_overrides(flags, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    stored: list[dict[str, Any]] = []
    for one in _collections(settings, collection):
        if not json_output:
            click.echo(f"{one.name}: measuring the plain script …", err=True)
        frame = chunks_of(settings, one)[0]
        measured = measure_baseline(one.name, frame, choose_models(settings.models).dense, repeats)
        store_baseline(baselines_folder(settings.paths), measured)
        stored.append(measured.as_json())
        if not json_output:
            click.echo(_sentence(measured))
    if json_output:
        click.echo(json.dumps(stored, indent=2))
    return 0


def _collections(settings: Settings, named: str | None) -> list[Collection]:
    root = Path(settings.paths.chunked_dir)
    found = discover(root).collections
    if not found:
        raise InputError(
            str(root), "has no folder with chunk files", "Give --chunked-dir the folder of the collections, or --sample"
        )
    return list(choose(found, [named] if named else []))


def _sentence(measured: SlaBaseline) -> str:
    each = ", ".join(f"{model.slug} {model.seconds:.2f} s" for model in measured.models)
    runs = min(len(model.encode_seconds) for model in measured.models)
    return (
        f"{measured.collection}: {measured.seconds:.2f} s for {measured.texts} chunks ({each}; median of {runs}) on "
        f"{measured.host.cores} cores of {measured.host.cpu}. Stored; later runs on this machine are held against it."
    )
