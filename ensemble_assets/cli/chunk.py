"""Cut documents into a collection: ``ensemble-assets chunk``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.settings.chosen_models import choose_models

_PATH = click.Path(path_type=Path)
_USUAL_TOKENS = 512
"""Most tokens of a chunk if the model would read more: vectors of longer texts say less of each part."""
_MOST_NAMED = 5
"""Files that a message names, so that it stays a line or two."""
_USUAL_OVERLAP = 32
"""Tokens: a sentence or two."""


@click.command()
@click.argument("folder", type=_PATH)
@click.option("--into", required=True, type=_PATH, metavar="DIR", help="Collection to write, such as corpora/notes.")
@click.option("--tokens", type=click.IntRange(16), help="Most tokens of a chunk; what the model reads, up to 512.")
@click.option("--overlap", type=click.IntRange(0), default=_USUAL_OVERLAP, help="Tokens that neighbours share at most.")
@args.with_options(args.PROFILE, args.DENSE_MODELS, args.SET)
def chunk(
    folder: Path, into: Path, tokens: int | None, overlap: int, assignments: tuple[str, ...], **flags: Any
) -> int:
    """Cut the Markdown, HTML, CSV and text files of FOLDER into chunks.

    They are cut at headings, and where a section is longer than the primary dense model reads, between paragraphs or
    sentences. A row of a CSV file is a chunk. Running it again replaces the chunks. A document that cannot be read is
    left out and named, and the exit code is then 1.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: there is no such folder")
    settings = args.resolve_flags(flags, assignments)
    primary = choose_models(settings.models).primary
    # imported after the checks: a mistake is said before a second of imports
    from ensemble_assets.collection.readers.formats import files_left
    from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
    from ensemble_assets.documents.cutting import Cutting, cut_folder
    from ensemble_assets.documents.sections import READERS
    from ensemble_assets.pipeline.from_settings import files_of, tokens_of_chunks

    vocabulary = load_vocabulary(files_of(primary, settings))

    def count(text: str) -> int:
        return len(vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)

    around = vocabulary.template.single_before + vocabulary.template.single_after
    most = tokens_of_chunks(settings) - len(around) - count(primary.document_prefix or "")
    if tokens and tokens > most:
        raise SettingsError(f"--tokens {tokens}: {primary.slug} reads at most {most} of a chunk. Give no more")
    limit = tokens or min(_USUAL_TOKENS, most)
    if overlap >= limit:
        raise SettingsError(f"--overlap {overlap}: a chunk has at most {limit} tokens. Give fewer")
    with args.wrong_name_is_usage_error():
        cutting = Cutting(count, limit, overlap, room_for_headings=settings.chunks.headings == "prepend")
        written = cut_folder(folder, into, cutting, follow_links=settings.chunks.follow_links)
    left_out = f", {len(written.unread)} left out" if written.unread else ""
    documents = "document" if written.documents == 1 else "documents"
    chunks = "chunk" if written.chunks == 1 else "chunks"
    counted = f"{written.documents} {documents}{left_out}, {written.chunks} {chunks} of at most {limit} tokens"
    click.echo(f"{counted}: {written.file}")
    for error in written.unread:
        click.echo(f"Left out: {error}", err=True)
    if written.empty:
        click.echo(f"Without any text: {', '.join(written.empty)}", err=True)
    left, judging = files_left(folder, READERS)
    if left:
        click.echo(f"Not read: {left}. Save documents among them as Markdown, HTML or text first", err=True)
    if judging:
        named = ", ".join(judging[:_MOST_NAMED]) + (", ..." if len(judging) > _MOST_NAMED else "")
        click.echo(f"Not read: {named}, by name files of queries or judgements. Rename documents among them", err=True)
    folder_of_all, own = (shlex.quote(str(part)) for part in (into.parent, into.name))
    click.echo(f"Next: ensemble-assets run --chunked-dir {folder_of_all} --collections {own}")
    return 1 if written.unread else 0
