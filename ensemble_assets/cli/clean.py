"""List what this program wrote on this machine, and remove it: ``ensemble-assets clean``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import (
    artefact_base,
    cache_folder,
    incidents_folder,
    journal_folder,
    key_file,
    lock_folder,
)


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
        if names and (yes or click.confirm(f"Remove {place.path}?")):
            place.remove()
            click.echo(f"{'':22}removed")
    return 0


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
    yield Place("locks", lock_folder(paths), "device locks of all users, a few bytes; stays", shared=True)
