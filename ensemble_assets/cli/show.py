"""Show what reranking did to the queries of a run: ``ensemble-assets show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings import resolve

if TYPE_CHECKING:
    from rich.console import Console

    from ensemble_assets.asking.query_view import Candidate, QueryViews

_LISTED = 10


@click.command()
@args.TARGET
@click.argument("query_id", required=False)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1, 100), help="Chunks before and after.")
@click.option("--run-file", type=click.Path(path_type=Path), help="Write a TREC run with your own query ids here.")
@args.TARGET_OUTPUT
@args.SET
def show(
    target: str,
    query_id: str | None,
    top: int,
    run_file: Path | None,
    output_dir: str | None,
    assignments: tuple[str, ...],
) -> int:
    """Show a query's chunks before and after reranking; without QUERY_ID, who gained and lost most.

    TARGET is a collection that was run, or its bundle's folder. Texts come from the artefacts on this machine. A
    bundle has public query ids only; the file of --run-file lies outside of it and has those of your queries file.
    """
    collection, overrides, sources = args.locate_target(target, output_dir, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    args.require_run(settings, collection)
    with args.importing():
        from ensemble_assets.asking.query_view import QueryViews
        from ensemble_assets.pipeline.from_settings import open_store

    with args.wrong_name_is_usage_error():
        views = QueryViews(open_store(settings), collection)
    if run_file is not None:
        _write_run(views, run_file, Path(settings.paths.output_dir))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if query_id is None:
        _list_changes(console, views)
    else:
        console.print(f"{query_id}: {views.text_of(query_id)}", style="bold", markup=False)
        for candidate in views.candidates(query_id, top):
            _print(console, candidate)
    return 0


def _write_run(views: QueryViews, path: Path, output_dir: Path) -> None:
    if path.resolve().is_relative_to(output_dir.resolve()):
        raise SettingsError(f"--run-file {path}: is in the folder of the bundles, which hold no query ids of yours")
    try:
        views.write_run(path)
    except OSError as error:
        raise SettingsError(f"--run-file {path}: cannot be written ({error.strerror}). Give another place") from None
    click.echo(path)


def _list_changes(console: Console, views: QueryViews) -> None:
    changes = views.changes()
    if not any(each.change for each in changes):
        none = f"No query gained or lost by reranking ({changes[0].measure if changes else 'no queries'})"
        console.print(none if views.reranked else "Reranking was off in the run, so no list was changed by it")
        return
    for title, chosen in (("Gained most", changes[:_LISTED]), ("Lost most", changes[::-1][:_LISTED])):
        wanted = [each for each in chosen if (each.change > 0) == (title == "Gained most") and each.change]
        console.print(f"{title} ({wanted[0].measure if wanted else 'none'})", style="bold")
        for each in wanted:
            line = f"  {each.change:+.3f}  {each.public_id}  {each.text}"
            console.print(line, markup=False, no_wrap=True, overflow="ellipsis")


def _print(console: Console, candidate: Candidate) -> None:
    from rich.text import Text

    mark = "=" if not candidate.moved else f"{'▲' if candidate.moved > 0 else '▼'}{abs(candidate.moved)}"
    scores = {"late interaction": candidate.late_score, "reranker": candidate.rerank_score}
    scored = "".join(f"  {name} {score:.2f}" for name, score in scores.items() if score is not None)
    judged = "" if candidate.relevance is None else f"  relevance {candidate.relevance}"
    head = Text(f"{candidate.rank:>3}  was {candidate.fused_rank:<4}", "green" if candidate.moved > 0 else "")
    head.append(f"{mark:<5}{candidate.chunk_id}", "bold")
    head.append(f"{scored}{judged}", "dim")
    console.print(head)
    text = Text("     " + " ".join(candidate.text.split()))
    text.truncate(2 * max(40, console.width - 2), overflow="ellipsis")
    console.print(text)
