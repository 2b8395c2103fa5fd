"""Ask a bundle: ``ensemble-assets search``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stages import list_title
from ensemble_assets.common.stopping import STOPPED, stop_when_asked
from ensemble_assets.settings import Settings, resolve

if TYPE_CHECKING:
    from rich.console import Console

    from ensemble_assets.asking.searcher import Hit, Searcher

_PASSAGE_LINES = 4
_PROMPT = "question> "
_HOW_TO_LEAVE = "An empty line ends it."


@click.command()
@args.TARGET
@click.argument("question", required=False)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1, 1000), help="Passages to show.")
@click.option("--explain", is_flag=True, help="Show the rank in every list.")
@args.TARGET_OUTPUT
@args.SET
@args.JSON
def search(
    target: str, question: str | None, *, top: int, explain: bool, json_output: bool, output_dir: str | None,
    assignments: tuple[str, ...],
) -> int:  # fmt: skip
    """Search TARGET, a bundle or a collection that was run, for QUESTION; without one, ask for questions.

    Uses the models, shares and depth that made the bundle: of the options of --set only devices, paths, models.file and
    fusion.depth act here. Nothing of a question is written anywhere.
    """
    if question is not None and not question.strip():
        raise click.UsageError("the question is empty. Give some words, or none for a prompt")
    from ensemble_assets.export.read.bundle_reader import open_bundle
    from ensemble_assets.export.write.names import collection_folder

    collection, overrides, sources = args.locate_target(target, output_dir, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    named = Path(target)
    folder = named if named.is_dir() else Path(settings.paths.output_dir) / collection_folder(collection)
    if not folder.is_dir():  # the path's own name, such as output_x of output/x, was never typed
        raise SettingsError(f"{target}: there is no such bundle. Name its folder, or a collection that was run")
    with args.wrong_name_is_usage_error():
        open_bundle(folder)  # a mistake is said before a second of imports
    # there is no work to go on with after a stop, so nothing is said of it; models may take longer than a stop may
    with stop_when_asked(partial(click.echo, err=True)):
        try:
            return _search(folder, settings, question, top, explain, json_output)
        except KeyboardInterrupt:
            click.echo(err=True)
            return STOPPED


def _search(folder: Path, settings: Settings, question: str | None, top: int, explain: bool, json_output: bool) -> int:
    with args.wrong_name_is_usage_error():
        with args.importing():
            from rich.console import Console

            from ensemble_assets.asking.searcher import Searcher
        searcher = Searcher(folder, settings)
    console = Console(highlight=False)
    try:
        for number, asked in enumerate([question] if question is not None else _asked()):
            _answer(console, searcher, asked, top, explain, json_output)
            if question is None and number == 0:  # more questions may follow, and their answer is read first
                Thread(target=searcher.prepare, daemon=True).start()
    finally:
        searcher.close()
    return 0


def _asked() -> Iterator[str]:
    """Read questions until an empty line or the end of the input. They go into no history file."""
    if sys.stdin.isatty():
        click.echo(_HOW_TO_LEAVE, err=True)
    while True:
        if sys.stdin.isatty():
            click.echo(_PROMPT, nl=False)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def _answer(console: Console, searcher: Searcher, question: str, top: int, explain: bool, json_output: bool) -> None:
    hits = searcher.ask(question, top)
    for note in searcher.notes:
        click.echo(note, err=True)
    searcher.notes.clear()
    if json_output:
        click.echo(json.dumps([asdict(hit) for hit in hits], ensure_ascii=False))
    elif not hits:
        click.echo("Nothing matches.")
    else:
        for hit in hits:
            _print_hit(console, hit, question, explain)


def _print_hit(console: Console, hit: Hit, question: str, explain: bool) -> None:
    from rich.text import Text

    from ensemble_assets.asking.marking import passage, word_places

    head = Text(f"{hit.rank:>3}  {hit.score:.3f}  ")
    head.append(hit.heading or hit.chunk_id, "bold")
    head.append(f"  {hit.source}", "dim")
    console.print(head)
    if explain:
        ranks = ", ".join(f"{list_title(name)} {rank or '-'}" for name, rank in hit.ranks.items())
        scores = {"late interaction": hit.late_score, "reranker": hit.rerank_score}
        scored = (f"{name} {score:.2f}" for name, score in scores.items() if score is not None)
        console.print(Text(f"     {', '.join((ranks, *scored))}", "cyan"))
    shown = passage(hit.text, question, _PASSAGE_LINES * max(40, console.width - 6))
    text = Text(shown)
    for start, end in word_places(shown, question):
        text.stylize("bold yellow", start, end)
    console.print(text, soft_wrap=False)
