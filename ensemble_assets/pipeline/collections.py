"""From a partition key to the collection's folder and chunks, as the settings say where and how they are read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import Collection, choose, discover
from ensemble_assets.collection.queries import QuerySet, load_queries
from ensemble_assets.collection.query_privacy import load_or_create_key
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.collection.readers.read_report import ReadReport
from ensemble_assets.pipeline.model_choice import choose_models
from ensemble_assets.settings import Settings
from ensemble_assets.settings.default_paths import key_file


def find_collection(settings: Settings, name: str) -> Collection:
    """The collection of that partition key.

    Raises:
        InputError: if it is not below ``paths.chunked_dir``; lists those that are.
    """
    return choose(discover(Path(settings.paths.chunked_dir)).collections, [name])[0]


def chunks_of(settings: Settings, collection: Collection) -> tuple[pl.DataFrame, ReadReport]:
    """A collection's ``CHUNKS`` frame with the texts that a run takes, and what happened on reading.

    Raises:
        InputError: if the chunks cannot be used.
    """
    options = settings.chunks
    return read_chunks(
        collection.folder,
        choose_models(settings.models).primary.chunk_tokens,
        options.min_tokens,
        keep_rest=options.searched == "whole",
        format_name=options.format or None,
        follow_links=options.follow_links,
        limits=ReadLimits(record_bytes=options.max_record_mb * 1_000_000),
    )


def queries_of(settings: Settings, collection: Collection, chunks: pl.DataFrame) -> QuerySet:
    """Load a collection's queries and judgements as the settings say.

    Args:
        settings: options of the queries.
        collection: whose folder holds them, unless the settings name files.
        chunks: ``CHUNKS`` frame; judgements refer to it, and queries are derived from it if there is no file.

    Raises:
        InputError: if a file cannot be used.
    """
    options = settings.queries
    return load_queries(
        collection.folder,
        chunks,
        load_or_create_key(key_file(settings.paths)),
        queries_file=Path(options.file) if options.file else None,
        qrels_file=Path(options.qrels) if options.qrels else None,
        judged_only=options.judged_only,
        derived_limit=options.derived_limit,
        ids_are_public=options.ids_are_public,
    )
