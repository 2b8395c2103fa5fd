"""``ensemble-assets validate BUNDLE``: the gates of the export contract, outside Dagster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from ensemble_assets.collection.queries import read_queries
from ensemble_assets.collection.readers.input_files import InputFile
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stage_limits import costs_of
from ensemble_assets.export.checks.v40_parity import v40_parity
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.query_leaks.searched_places import Place, file_place, folder_places
from ensemble_assets.export.read.bundle_reader import Bundle, open_bundle
from ensemble_assets.export.suite import judge_bundle, judge_costs, public_names_in
from ensemble_assets.pipeline.bundle_inputs import limits_of
from ensemble_assets.settings import resolve


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="OTHER", help="A bundle of the same vectors.")
@click.option("--queries", type=click.Path(path_type=Path), metavar="FILE", help="Queries that must be nowhere.")
@click.option("--search", type=click.Path(path_type=Path), multiple=True, help="Search this file or folder too.")
@click.option("--json", "json_output", is_flag=True, help="Print as JSON.")
def validate(
    bundle: Path, against: Path | None, queries: Path | None, search: tuple[Path, ...], json_output: bool
) -> int:
    """Check BUNDLE, of v4.0 or v4.1, with or without a manifest.

    Exit code 0: nothing worse than warnings. 1: problems. 2: BUNDLE or OTHER is no bundle, or a file is missing.
    """
    opened, limits = _bundle(bundle), limits_of(resolve().settings)
    other = _bundle(against) if against is not None else None
    missing = [path.name for path in search if not path.exists()]
    if missing:
        raise SettingsError(f"--search {missing[0]}: there is no such file or folder")
    results = [
        *judge_bundle(
            opened,
            limits,
            queries=_queries(queries) if queries else (),
            places=lambda: _places(search),
            public=lambda: public_names_in(opened),
        ),
        *judge_costs(costs_of(opened.manifest), limits, opened.manifest),
        *([v40_parity(opened, other)] if other is not None else []),
    ]
    _report(opened, results, json_output)
    return 1 if any(result.failed for result in results) else 0


def _bundle(folder: Path) -> Bundle:
    try:
        return open_bundle(folder)
    except ArtefactError as error:
        raise SettingsError(str(error)) from None


def _queries(path: Path) -> tuple[Query, ...]:
    """The queries of a file, called by their lines: their ids may be texts."""
    if not path.is_file():
        raise SettingsError(f"--queries {path.name}: there is no such file")
    frame = read_queries(InputFile(path, path.name), Tally())
    return tuple(Query(f"in line {line}", text) for text, line in frame.select("text", "line").iter_rows())


def _places(search: tuple[Path, ...]) -> Iterator[Place]:
    for path in search:
        if path.is_dir():
            yield from folder_places(path)
        else:
            yield file_place(path)


def _report(bundle: Bundle, results: list[GateResult], json_output: bool) -> None:
    passed = not any(result.failed for result in results)
    if json_output:
        gates = [result.as_json() for result in results]
        click.echo(json.dumps({"version": bundle.version, "passed": passed, "gates": gates}, indent=2))
        return
    click.echo(f"{bundle.folder.resolve().name}: a {bundle.version} bundle")
    for result in results:
        state = "ok" if result.passed else ("FAILED" if result.failed else "warning")
        click.echo(f"  {state:8}{result.name}")
        for sentence in result.problems:
            click.echo(f"          {sentence}")
        quoted, count = len(result.problems), int(result.numbers.get("problems", 0))
        if count > quoted:
            click.echo(f"          and {count - quoted} more")
        for sentence in result.notes:
            click.echo(f"          ({sentence})")
