"""``ensemble-assets report BUNDLE``: the page about a bundle that people look at."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.pipeline.run_report import facts_of_bundle, report_path, write_report
from ensemble_assets.settings import resolve


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the page lands; beside BUNDLE if not given.",
)
def report(bundle: Path, output: Path | None) -> int:
    """Write an HTML page about BUNDLE: time, memory, scores, fallbacks, settings, quality.

    One file that opens from disk and needs no network. Exit code 2: BUNDLE has no readable manifest, or FILE cannot be
    written.
    """
    try:
        facts = facts_of_bundle(bundle, resolve().settings)
    except ArtefactError as error:
        raise SettingsError(str(error)) from None
    path = output or report_path(bundle)
    try:
        write_report(facts, path)
    except OSError as error:
        raise SettingsError(f"{path.name}: cannot be written ({error.strerror}). Give --output another place") from None
    click.echo(path)
    return 0
