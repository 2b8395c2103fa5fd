"""Describe this machine, and tidy it.

``doctor`` says what a run would use and why, ``leases`` who uses which device. ``clean`` lists what was written where,
and removes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import DeviceError, EnsembleError, ModelUnavailableError, SettingsError
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import (
    artefact_base,
    cache_folder,
    dagster_home,
    incidents_folder,
    journal_folder,
    key_file,
    lock_folder,
    other_key_files,
)

if TYPE_CHECKING:
    from ensemble_assets.compute.devices.device import Device
    from ensemble_assets.models.model_files import ModelFiles
    from ensemble_assets.models.spec import ModelSpec


@click.command()
@args.JSON
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
@args.with_options(args.PROFILE, args.DENSE_MODELS, args.SPARSE_MODELS, args.SET)
def doctor(assignments: tuple[str, ...], **flags: Any) -> int:
    """Describe this machine, and what a run with these options would use and why.

    Models that are named are tried: fetched, loaded and compared with sentence-transformers. Exit code 1: a run would
    end with the error that stands beside a model.
    """
    from ensemble_assets.compute.devices.discovery import discover_devices
    from ensemble_assets.settings.chosen_models import named_models

    settings, environment = args.resolve_flags(flags, assignments), resolve().environment
    named = named_models(settings)
    cannot_run = {spec: sentence for spec in named if (sentence := _why_not(spec, settings))}
    ceiling, soft = f"{settings.device.ceiling_gb:g} GB", f"{settings.device.soft_fraction:.0%}"
    discovery = discover_devices(environment.get("CUDA_VISIBLE_DEVICES"))
    forecast = _Forecast(settings, discovery.chosen)
    sections: dict[str, list[str]] = {
        "Versions": _versions(),
        "Devices": [*discovery.sentences, *_processor(settings, forecast)],
        "Memory": [
            f"No device goes above {ceiling} (device.ceiling_gb): on a GPU all processes count, on a CPU this run.",
            f"Batches are planned to {soft} of that (device.soft_fraction).",
            *forecast.memory(),
        ],
        "Models": _describe_models(settings, cannot_run, forecast),
        "Stages": [
            f"sparse vectors are {_switch(settings.enable_sparse)}, reranking is {_switch(settings.enable_rerank)}."
        ],
        "Places": [
            f"Chunks are read from {settings.paths.chunked_dir}.",
            f"Bundles are written to {settings.paths.output_dir}, stage artefacts to {artefact_base(settings.paths)}.",
            *_room(settings),
            f"The cache of compiled models and measurements is {cache_folder(settings.paths)}.",
            f"Device locks are in {lock_folder(settings.paths)}.",
            f"The key of query hashes is {key_file(settings.paths)}.",
            f"Dagster's instance is {environment.get('DAGSTER_HOME') or 'private to each run (no DAGSTER_HOME)'}.",
        ],
    }
    for title, lines in sections.items():
        click.echo(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    return 1 if cannot_run else 0


def _versions() -> list[str]:
    import platform

    from ensemble_assets.common.machine import library_versions
    from ensemble_assets.common.version import __version__

    libraries = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return [f"ensemble-assets {__version__} on Python {platform.python_version()}.", f"{libraries}."]


def _room(settings: Settings) -> list[str]:
    """Say how much room there is for results: in the output folder, or the nearest above it that is there."""
    folder = Path(settings.paths.output_dir).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        return [f"There is room for {shutil.disk_usage(there).free / 1e9:,.1f} GB."]
    except OSError:
        return []


def _processor(settings: Settings, forecast: _Forecast) -> list[str]:
    """Say how fast the CPU multiplies, where stages compute on it; it is measured if it was not yet."""
    import importlib.util

    elsewhere = forecast.has_gpu or settings.encoding.backend == "torch" or settings.device.precision == "fp16"
    if elsewhere or importlib.util.find_spec("openvino") is None:
        return []
    from ensemble_assets.compute.backends.cpu_products import cpu_products, settled_precision
    from ensemble_assets.compute.splade_head.head import host_path
    from ensemble_assets.compute.splade_head.measured_ways import stored_ways

    folder = cache_folder(settings.paths)
    products, precision = cpu_products(folder), settled_precision(settings.device.precision, folder)
    half = f"{products.bf16:,.0f} in bf16" if products.bf16 else "bf16 not in hardware"
    head, ways = host_path(), stored_ways(folder)
    terms = f"screened by 8-bit products ({head.reason})" if head.name == "screen" else "computed by plain products"
    rates = ", ".join(f"{name} {rate:,}" for name, rate in ways.tokens_per_second.items()) if ways else ""
    return [
        f"OpenVINO multiplies {products.fp32:,.0f} GFLOP/s in fp32, {half}: networks compute in {precision}.",
        f"Sparse terms of large runs are {terms}.",
        *([f"The last run took {ways.path} for them; tokens a second on one thread: {rates}."] if ways else []),
    ]


def _switch(on: bool) -> str:
    return "on" if on else "off"


class _Forecast:
    """What the chosen GPUs have, and what each model would be on the one with the least memory free."""

    def __init__(self, settings: Settings, devices: Sequence[Device]) -> None:
        from ensemble_assets.compute.backends.gpu_forecast import room
        from ensemble_assets.compute.devices.ceiling import Ceiling
        from ensemble_assets.compute.devices.cuda import CudaDevice, GpuFacts

        options = settings.device
        self._ceiling = Ceiling(options.ceiling_bytes, options.soft_fraction)
        self._precision = options.precision
        self._gpus: list[tuple[CudaDevice, GpuFacts]] = []
        self._silent: list[str] = []
        for gpu in devices:
            if isinstance(gpu, CudaDevice):
                try:
                    self._gpus.append((gpu, gpu.facts()))
                except DeviceError as error:
                    self._silent.append(f"{gpu.name}: {error}.")
        self._tightest = min(
            (facts for _, facts in self._gpus), key=lambda facts: room(facts, self._ceiling), default=None
        )

    @property
    def has_gpu(self) -> bool:
        return self._tightest is not None

    def memory(self) -> list[str]:
        from ensemble_assets.compute.backends.gpu_forecast import about_memory

        return [*(about_memory(gpu, facts, self._ceiling) for gpu, facts in self._gpus), *self._silent]

    def model(self, spec: ModelSpec, files: ModelFiles | None = None) -> str:
        """Describe a model by its files, or by what the hub says of them."""
        from ensemble_assets.compute.backends.gpu_forecast import about_files, about_model
        from ensemble_assets.models import model_files
        from ensemble_assets.models.spec import HubSource

        if self._tightest is None:
            return ""
        if files is not None:
            about = about_files(spec, files, self._tightest, self._ceiling, self._precision)
        else:
            assert isinstance(spec.source, HubSource)
            config, stored = model_files.describe_on_hub(spec.source)
            about = about_model(spec, config, stored, self._tightest, self._ceiling, self._precision)
        return f": {about}" if about else ""


def _describe_models(settings: Settings, cannot_run: Mapping[ModelSpec, str], forecast: _Forecast) -> list[str]:
    from ensemble_assets.settings.chosen_models import choose_models

    choice = choose_models(settings.models)
    specs: list[ModelSpec] = [*choice.dense, *choice.sparse, choice.rerank]
    origins = ((spec, cannot_run.get(spec) or _origin(spec, settings, forecast)) for spec in specs)
    return [
        f"Profile {settings.models.profile}.",
        *(f"{spec.kind}: {spec.slug}, {origin}." for spec, origin in origins),
    ]


def _why_not(spec: ModelSpec, settings: Settings) -> str:
    """Give the error that a run with this model ends with; empty where it runs."""
    from ensemble_assets.pipeline.from_settings import require_model

    try:
        require_model(spec, settings)
    except EnsembleError as error:
        return f"CANNOT RUN: {error}"
    return ""


def _origin(spec: ModelSpec, settings: Settings, forecast: _Forecast) -> str:
    from ensemble_assets.models.model_files import cached_files, hub_has_weights
    from ensemble_assets.models.spec import HubSource
    from ensemble_assets.pipeline.from_settings import files_of

    only = settings.models.safetensors_only
    try:
        if not isinstance(spec.source, HubSource):
            files = files_of(spec, settings)
            return f"found ({files.revision}){forecast.model(spec, files)}"
        cached = cached_files(spec, safetensors_only=only)
    except ModelUnavailableError as error:
        return f"MISSING: {error}"
    if cached is not None:
        return f"in the local Hugging Face cache ({cached.revision}){forecast.model(spec, cached)}"
    on_hub = hub_has_weights(spec.source, safetensors_only=only)
    if on_hub is False:
        what = "safetensors" if only else "weights"
        return f"MISSING: {spec.source.repository} has no {what} on the Hugging Face hub at {spec.source.revision}"
    said = forecast.model(spec) if on_hub else "; the hub does not answer now"
    return f"from the Hugging Face hub ({spec.source.repository}), fetched on first use{said}"


@dataclass(frozen=True)
class Place:
    """Something on disk; ``meaning`` says what is lost with it. A place that others share is never removed."""

    name: str
    path: Path
    meaning: str
    shared: bool = False

    def size(self) -> int:
        """Bytes of all files."""
        files = self.path.rglob("*") if self.path.is_dir() else iter([self.path])
        return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())

    def remove(self) -> None:
        """Remove the folder or file."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--output-dir", metavar="DIR", help="Output folder whose artefacts are meant.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@args.SET
def clean(names: tuple[str, ...], output_dir: str | None, yes: bool, assignments: tuple[str, ...]) -> int:
    """List what was written where, with sizes; with NAMES, remove these. Bundles and reports are never removed."""
    overrides, sources = args.option_overrides({"output_dir": output_dir}, assignments)
    places = {place.name: place for place in _places(resolve(overrides, override_sources=sources).settings)}
    unknown = [name for name in names if name not in places or places[name].shared]
    if unknown:
        removable = ", ".join(place.name for place in places.values() if not place.shared)
        raise SettingsError(f"clean {unknown[0]}: expected some of {removable}")
    for place in [places[name] for name in names] or places.values():
        if not place.path.exists():
            click.echo(f"{place.name:10}{'-':>10}  {place.path}")
            continue
        click.echo(f"{place.name:10}{place.size() / 1e6:>7.1f} MB  {place.path}\n{'':22}{place.meaning}")
        if names and (yes or _confirmed(place.path)):
            place.remove()
            click.echo(f"{'':22}removed")
    return 0


def _confirmed(path: Path) -> bool:
    try:
        return click.confirm(f"Remove {path}?")
    except click.Abort as abort:
        if isinstance(abort.__context__, EOFError):
            raise click.UsageError("nobody is there to answer. Give --yes to remove without a question") from None
        raise


def _places(settings: Settings) -> Iterator[Place]:
    paths = settings.paths
    output = Path(paths.output_dir)
    yield Place("cache", cache_folder(paths), "compiled models, batch sizes, measured baselines (baseline sla)")
    if "://" not in artefact_base(paths):
        yield Place(
            "artifacts", Path(artefact_base(paths)), "results of stages, query texts included; all is computed anew"
        )
    yield Place("journals", journal_folder(output), "traces of runs, which the report's memory curves come from")
    yield Place("qdrant", output / ".qdrant", "the embedded Qdrant; upload again")
    yield Place("incidents", incidents_folder(paths), "records of failed runs")
    yield Place(
        "key", key_file(paths), "the key of public query ids; later runs give other ids, and baselines do not fit"
    )
    for number, path in enumerate(other_key_files(paths)):
        yield Place(f"other-key{number or ''}", path, "the same, of runs with another DAGSTER_HOME, such as make run")
    yield Place("instance", dagster_home(), "Dagster's runs and their logs, and maybe a key; stays", shared=True)
    yield Place("locks", lock_folder(paths), "device locks of all users, a few bytes; stays", shared=True)
