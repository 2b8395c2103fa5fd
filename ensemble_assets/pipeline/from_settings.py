"""Open the things that the settings name: artefact store, models' files, a collection's inputs, a run's telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import Collection, choose, discover
from ensemble_assets.collection.queries import QuerySet, load_queries
from ensemble_assets.collection.query_privacy import load_or_create_key
from ensemble_assets.collection.readers.fields import Fields
from ensemble_assets.collection.readers.input_files import ReadLimits, printable
from ensemble_assets.collection.readers.read_report import ReadReport
from ensemble_assets.common.errors import InputError
from ensemble_assets.models.model_files import ModelFiles, cached_files, locate
from ensemble_assets.models.spec import HubSource, ModelSpec
from ensemble_assets.settings import Settings
from ensemble_assets.settings.chosen_models import choose_models, named_models, require_consistent
from ensemble_assets.settings.default_paths import artefact_base, cache_folder, journal_folder, key_file

if TYPE_CHECKING:
    from ensemble_assets.telemetry.run_telemetry import RunTelemetry

UNLIMITED_TOKENS = 1_000_000
"""Tokens of a chunk for a model without a limit, such as static embeddings; no record may be as long."""


def open_store(settings: Settings) -> ArtefactStore:
    """Open the artefact store."""
    budget = int(settings.device.host_budget_gb * 1e9)
    return artefact_store(artefact_base(settings.paths), cache_folder(settings.paths), budget_bytes=budget)


def run_telemetry(run_id: str, collection: str, settings: Settings, environment: Mapping[str, str]) -> RunTelemetry:
    """Open the telemetry of one run and collection; by default a JSONL journal beside the bundles and no network.

    ``OTEL_*`` variables of ``environment`` name further exporters.
    """
    from ensemble_assets.telemetry.exporters import TelemetryOptions
    from ensemble_assets.telemetry.run_telemetry import RunTelemetry

    metrics = settings.metrics
    options = TelemetryOptions(
        journal_folder=journal_folder(Path(settings.paths.output_dir)),
        otlp={name: value for name, value in environment.items() if name.startswith("OTEL_")},
        textfile_folder=Path(metrics.textfile_dir) if metrics.textfile_dir else None,
        pushgateway=metrics.pushgateway,
        metrics_enabled=metrics.enabled,
        namespace=metrics.namespace,
    )
    return RunTelemetry(run_id, collection, options=options)


def find_collection(settings: Settings, name: str) -> Collection:
    """Find the collection of a partition key; a missing one is an ``InputError`` that names the others."""
    return choose(discover(Path(settings.paths.chunked_dir)), [name])[0]


def tokens_of_chunks(settings: Settings) -> int:
    """Return the tokens that the primary dense model reads of a chunk, in all its windows."""
    primary = choose_models(settings.models).primary
    if primary.max_tokens:
        return primary.chunk_tokens
    from ensemble_assets.compute.backends.library.describe import describe

    complete = describe(primary, files_of(primary, settings), cache_folder(settings.paths)).spec
    return complete.chunk_tokens or UNLIMITED_TOKENS


def require_named_models(settings: Settings) -> None:
    """Find and describe every model that the options name; ``ModelUnavailableError`` if one cannot run.

    A profile's own models are left to their stages, which fall back and record it. Options that contradict each
    other are a ``SettingsError``.
    """
    require_consistent(settings)
    for spec in named_models(settings):
        require_model(spec, settings)


def require_model(spec: ModelSpec, settings: Settings) -> None:
    """Find and describe one model. Missing files of a hub model are downloaded.

    Raises:
        ModelUnavailableError: names the model, its fault and the remedy.
    """
    from ensemble_assets.compute.backends.library.describe import describe

    describe(spec, files_of(spec, settings), cache_folder(settings.paths))


def files_of(spec: ModelSpec, settings: Settings) -> ModelFiles:
    """Find a model's files as the settings allow; see ``locate``."""
    return locate(spec, cache_folder(settings.paths), safetensors_only=settings.models.safetensors_only)


def local_files(spec: ModelSpec, settings: Settings) -> ModelFiles | None:
    """Find a model's files where that asks nobody; None for a hub model that is not in the local cache."""
    if isinstance(spec.source, HubSource) and not cached_files(spec):
        return None
    return files_of(spec, settings)


def collection_chunks(settings: Settings, collection: Collection) -> tuple[pl.DataFrame, ReadReport]:
    """Read a collection's ``CHUNKS`` frame with the texts that a run takes, and a report of the reading."""
    options = settings.chunks
    limits = ReadLimits(
        record_bytes=options.max_record_mb * 1_000_000,
        fields=Fields(
            text=options.text_field,
            id=options.id_field,
            title=options.title_field,
            metadata=options.metadata_fields,
            keep_flat=options.flat_records == "keep",
        ),
        refuse_repeated_ids=options.repeated_ids == "refuse",
        prepend_headings=options.headings == "prepend",
    )
    with _naming(collection):
        return read_chunks(
            collection.folder,
            tokens_of_chunks(settings),
            options.min_tokens,
            keep_rest=options.searched == "whole",
            format_name=options.format or None,
            follow_links=options.follow_links,
            skip_broken=options.on_error == "skip",
            limits=limits,
        )


@contextmanager
def _naming(collection: Collection, *given: str) -> Iterator[None]:
    """Name the collection's folder in an error, which knows the file's place within it: there may be many folders.

    Files that were ``given`` by a path are not in the folder.
    """
    try:
        yield
    except InputError as error:
        folder, file = printable(collection.alias), error.where.partition(",")[0]
        if file == folder:
            raise
        inside = (collection.folder / file).exists() and file not in (Path(path).name for path in given)
        raise InputError(f"{folder}{'/' if inside else ': '}{error.where}", error.problem, error.remedy) from None


def collection_queries(settings: Settings, collection: Collection, chunks: pl.DataFrame) -> QuerySet:
    """Load a collection's queries and judgements; they are derived from ``chunks`` (``CHUNKS``) if there is no file."""
    options = settings.queries
    with _naming(collection, options.file, options.qrels):
        return load_queries(
            collection.folder,
            chunks,
            load_or_create_key(key_file(settings.paths)),
            queries_file=Path(options.file) if options.file else None,
            qrels_file=Path(options.qrels) if options.qrels else None,
            judged_only=options.judged_only,
            derived_limit=options.derived_limit,
            ids_are_public=options.ids_are_public,
            split=options.split,
        )
