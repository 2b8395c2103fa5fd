"""Describe this machine: ``doctor`` says what a run would use and why, ``leases`` who uses which device."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ensemble_assets.cli.arguments import JSON
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import artefact_base, key_file, lock_folder

if TYPE_CHECKING:
    from ensemble_assets.models.registry import ModelSpec


@click.command()
@JSON
def leases(json_output: bool) -> int:
    """List the devices that are leased right now, and by whom."""
    from ensemble_assets.compute.devices.lease_notes import list_leases

    records = list_leases(lock_folder(resolve().settings.paths))
    if json_output:
        click.echo(json.dumps([asdict(record) for record in records], indent=2))
    else:
        lines = [f"{record.device} ({record.uuid}): {record.describe()}" for record in records]
        click.echo("\n".join(lines) or "No device is leased.")
    return 0


@click.command()
def doctor() -> int:
    """Describe this machine, and what a run would use and why."""
    from ensemble_assets.compute.devices.discovery import discover_devices

    resolved = resolve()
    settings, environment = resolved.settings, resolved.environment
    ceiling, soft = f"{settings.device.ceiling_gb:g} GB", f"{settings.device.soft_fraction:.0%}"
    sections: dict[str, list[str]] = {
        "Devices": list(discover_devices(environment.get("CUDA_VISIBLE_DEVICES")).sentences),
        "Memory": [
            f"No device goes above {ceiling} (device.ceiling_gb): on a GPU all processes count, on a CPU this run.",
            f"Batches are planned to {soft} of that (device.soft_fraction).",
        ],
        "Models": _describe_models(settings),
        "Stages": [
            f"sparse vectors are {_switch(settings.enable_sparse)}, reranking is {_switch(settings.enable_rerank)}."
        ],
        "Places": [
            f"Chunks are read from {settings.paths.chunked_dir}.",
            f"Bundles are written to {settings.paths.output_dir}, stage artefacts to {artefact_base(settings.paths)}.",
            f"Device locks are in {lock_folder(settings.paths)}.",
            f"The key of query hashes is {key_file(settings.paths)}.",
            f"Dagster's instance is {environment.get('DAGSTER_HOME') or 'private to each run (no DAGSTER_HOME)'}.",
        ],
    }
    for title, lines in sections.items():
        click.echo(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    return 0


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _describe_models(settings: Settings) -> list[str]:
    from ensemble_assets.pipeline.from_settings import choose_models

    choice = choose_models(settings.models)
    specs: list[ModelSpec] = [*choice.dense, *choice.sparse, choice.rerank]
    return [f"Profile {settings.models.profile}.", *(f"{spec.kind}: {spec.slug}, {_origin(spec)}." for spec in specs)]


def _origin(spec: ModelSpec) -> str:
    from ensemble_assets.models.model_files import locate
    from ensemble_assets.models.registry import HubSource

    if isinstance(spec.source, HubSource):
        return f"from the Hugging Face hub ({spec.source.repository}), fetched on first use"
    try:
        return f"found ({locate(spec).revision})"
    except ModelUnavailableError as error:
        return f"MISSING: {error}"
