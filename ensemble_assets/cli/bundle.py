"""Work on a finished bundle: ``validate``, ``report`` and ``upload``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli.arguments import JSON, wrong_name_is_usage_error
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.export.write.names import MANIFEST_NAME
from ensemble_assets.settings import resolve

if TYPE_CHECKING:
    from ensemble_assets.export.checks.result import GateResult
    from ensemble_assets.export.query_leaks.gate import Place
    from ensemble_assets.export.query_leaks.query_forms import Query
    from ensemble_assets.export.read.bundle_reader import Bundle

_PATH = click.Path(path_type=Path)
_BUNDLE = click.argument("bundle", type=_PATH)


@click.command()
@_BUNDLE
@click.option("--against", type=_PATH, metavar="OTHER", help="Compare with a bundle of the same vectors.")
@click.option("--queries", type=_PATH, metavar="FILE", help="Search for these queries, which must not occur.")
@click.option("--search", type=_PATH, multiple=True, help="Search this file or folder too.")
@JSON
def validate(
    bundle: Path, against: Path | None, queries: Path | None, search: tuple[Path, ...], json_output: bool
) -> int:
    """Check BUNDLE, of v4.0 or v4.1, with or without a manifest.

    Exit code 0: nothing worse than warnings. 1: problems. 2: BUNDLE or OTHER is no bundle, or a file is missing.
    """
    opened, settings = _open(bundle), resolve().settings
    other = _open(against) if against is not None else None
    missing = [path.name for path in search if not path.exists()]
    if missing:
        raise SettingsError(f"--search {missing[0]}: there is no such file or folder")
    from ensemble_assets.export.checks.stage_limits import costs_of
    from ensemble_assets.export.checks.v40_parity import v40_parity
    from ensemble_assets.export.suite import judge_bundle, judge_costs, public_names_in
    from ensemble_assets.pipeline.bundle.inputs import limits_of

    limits = limits_of(settings)
    results = [
        *judge_bundle(
            opened,
            limits,
            queries=_read_queries(queries) if queries else (),
            places=lambda: _places(search),
            public=lambda: public_names_in(opened),
        ),
        *judge_costs(costs_of(opened.manifest), limits, opened.manifest),
        *([v40_parity(opened, other)] if other is not None else []),
    ]
    _print_results(opened, results, json_output)
    return 1 if any(result.failed for result in results) else 0


def _open(folder: Path) -> Bundle:
    from ensemble_assets.export.read.bundle_reader import open_bundle

    with wrong_name_is_usage_error():
        return open_bundle(folder)


def _read_queries(path: Path) -> tuple[Query, ...]:
    """Read the queries of a file; labels are line numbers, because an id may be the query's text."""
    from ensemble_assets.collection.queries import read_queries
    from ensemble_assets.collection.readers.input_files import InputFile
    from ensemble_assets.collection.readers.read_report import Tally
    from ensemble_assets.export.query_leaks.query_forms import Query

    if not path.is_file():
        raise SettingsError(f"--queries {path.name}: there is no such file")
    frame = read_queries(InputFile(path, path.name), Tally())
    return tuple(Query(f"in line {line}", text) for text, line in frame.select("text", "line").iter_rows())


def _places(search: tuple[Path, ...]) -> Iterator[Place]:
    from ensemble_assets.export.query_leaks.gate import file_place, folder_places

    for path in search:
        if path.is_dir():
            yield from folder_places(path)
        else:
            yield file_place(path)


def _print_results(bundle: Bundle, results: list[GateResult], json_output: bool) -> None:
    passed = not any(result.failed for result in results)
    if json_output:
        gates = [result.as_json() for result in results]
        click.echo(json.dumps({"version": bundle.version, "passed": passed, "gates": gates}, indent=2))
        return
    version = f"a {bundle.version} bundle" if bundle.manifest else f"a bundle without its {MANIFEST_NAME}, read as v4.0"
    click.echo(f"{bundle.folder.resolve().name}: {version}")
    for result in results:
        judged = "FAILED" if result.failed else "warning"
        state = "skipped" if result.skipped else "ok" if result.passed else judged
        click.echo(f"  {state:8}{result.name}")
        for sentence in result.problems:
            click.echo(f"          {sentence}")
        count = int(result.numbers.get("problems", 0))
        if count > len(result.problems):
            click.echo(f"          {count} problems in all")
        for sentence in result.notes:
            click.echo(f"          ({sentence})")


@click.command()
@_BUNDLE
@click.option("--output", type=_PATH, metavar="FILE", help="Write here; beside BUNDLE if not given.")
@click.option("--with-queries", is_flag=True, help="Add query and chunk texts; into <bundle>.queries.html.")
def report(bundle: Path, output: Path | None, with_queries: bool) -> int:
    """Write an HTML page about BUNDLE: time, memory, scores, fallbacks, settings, quality.

    The page is one file that opens from disk and needs no network. Exit code 2: BUNDLE has no readable manifest, or
    FILE cannot be written.
    """
    from ensemble_assets.export.read.bundle_reader import read_manifest

    settings, more = resolve().settings, []
    with wrong_name_is_usage_error():
        read_manifest(bundle)  # a mistake is said before a second of imports
    from ensemble_assets.pipeline.bundle.report import facts_of_bundle, report_path, write_report
    from ensemble_assets.pipeline.from_settings import open_store

    path = output or report_path(bundle)
    with wrong_name_is_usage_error():
        facts = facts_of_bundle(bundle, settings)
        if with_queries:
            from ensemble_assets.asking.query_view import QueryViews, query_sections

            whole = bundle.resolve()
            path = output or whole.with_name(f"{whole.name}.queries.html")  # no other file of a run may hold a query
            here = resolve({"paths.output_dir": str(whole.parent)}).settings
            more = query_sections(QueryViews(open_store(here), whole.name))
    try:
        write_report(facts, path, more)
    except OSError as error:
        raise SettingsError(f"{path.name}: cannot be written ({error.strerror}). Give --output another place") from None
    click.echo(path)
    return 0


@click.command()
@_BUNDLE
@click.option("--url", help="Server, such as http://localhost:6333.")
@click.option("--api-key", help="Key of the server; better given as QDRANT_API_KEY.")
@click.option("--path", help="Folder of embedded storage; .qdrant beside BUNDLE if neither is given.")
@click.option("--collection", help="Name in Qdrant; <collection>_v4_<primary model> if not given.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), help="Points per request.")
@click.option("--layout", type=click.Choice(["named", "legacy"]), help="Of a new collection; see qdrant.layout.")
@click.option("--point-ids", type=click.Choice(["auto", "row", "chunk"]), help="chunk: for a shared collection.")
@click.option("--payload-text/--no-payload-text", default=None, help="Put the chunk's text into the payload.")
@click.option("--payload-sparse/--no-payload-sparse", default=None, help="Repeat the sparse vector in the payload.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port, if the URL has none.")
@click.option("--timeout", type=click.IntRange(1, 3600), help="Seconds that a request may take.")
@click.option("--retries", type=click.IntRange(0, 20), help="Further tries of a failed request.")
def upload(bundle: Path, api_key: str | None, **given: Any) -> int:
    """Upload BUNDLE into Qdrant, then check that counts match and that a chunk finds itself.

    A second upload changes nothing. An interrupted upload continues where it stopped. The options qdrant.* of the
    configuration hold here too. Exit code 1: the server does not answer, or refuses.
    """
    if given["url"] and given["path"]:
        raise SettingsError("--url and --path: give one of them, a server or a folder")
    opened, resolved = _open(bundle), resolve()
    from ensemble_assets.export.read.qdrant import describe
    from ensemble_assets.pipeline.bundle import qdrant

    options = resolved.settings.qdrant.model_copy(
        update={name: value for name, value in given.items() if value is not None}
        | ({"url": ""} if given["path"] else {})
    )
    key = api_key or resolved.environment.get("QDRANT_API_KEY")
    uploaded = qdrant.upload(opened, options, bundle.resolve().parent, key, _show_progress)
    click.echo(describe(uploaded))
    return 0


def _show_progress(points: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{points} points\r", nl=False, err=True)  # the next line replaces it
    else:
        click.echo(f"{points} points", err=True)
