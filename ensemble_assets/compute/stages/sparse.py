"""Encode chunks and queries as sparse SPLADE vectors, with a fallback for rows without one, in one index space.

A chunk whose inference failed, or gave no positive weight, gets its metadata terms in the live model's vocabulary. If
no model runs, every chunk does. The source of each vector is recorded. ``sparse_fallback`` makes the fallback vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.records import SparseRecord
from ensemble_assets.artefacts.stage_record import StageRecord, StageStatus, extend_record
from ensemble_assets.common.defaults import TOP_K
from ensemble_assets.common.errors import EnsembleError, SettingsError, says_disk_full
from ensemble_assets.compute.backends.choice import sparse_factory
from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.stages.context import ComputeContext, reason_of, record_of
from ensemble_assets.compute.stages.encoder_input import EncoderTexts
from ensemble_assets.compute.stages.held_model import HeldModel, hold_devices
from ensemble_assets.compute.stages.sparse_fallback import (
    LIVE,
    STAND_IN,
    PrunedOutputs,
    Rarity,
    SourcedVectors,
    TermSpace,
    collection_space,
    fill_missing,
    metadata_rows,
    space_of_model,
    text_rows,
    vocabulary_space,
)
from ensemble_assets.compute.stages.sparse_rows import SparseMatrix, SparseRow, empty_matrix, positive_entries
from ensemble_assets.compute.tokens.token_tables import TokenTable, take_rows
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import failed_texts, largest_weights
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

_UNPRUNED_BYTES = 128 << 20
"""Most bytes of unpruned query vectors that are computed at once."""

_CHUNKS_FOR_RARITY = 20_000
"""Most chunks, evenly spaced, whose metadata is read to see which terms are common."""


SparseFactoryMaker = Callable[[ModelSpec, ModelFiles, Runtime, int], ForwardFactory]
"""Makes the factory of a complete spec with a ``top_k``."""


@dataclass(frozen=True)
class SparseResult:
    """Output of the sparse stage.

    Attributes:
        chunks: one row per chunk, at most ``top_k`` entries where it is live.
        queries: one row per query, unpruned.
        source: ``[n_chunks] uint8``: 0 no vector, 1 live inference, 2 metadata terms.
        query_source: ``[n_queries] uint8``: 0 no vector, 1 live inference, 2 the query's own words, weight 1 each.
        words: token string by index; its length is the dimension.
        index_space: name of the index space, for comparing two runs.
    """

    chunks: SparseMatrix
    queries: SparseMatrix
    source: NDArray[np.uint8]
    query_source: NDArray[np.uint8]
    words: tuple[str, ...]
    index_space: str
    record: SparseRecord


@dataclass(frozen=True)
class _Run:
    """Outputs of one model, a row per chunk and per query; ``record`` has no model where none ran."""

    slug: str
    space: TermSpace
    dimension: int
    chunks: PrunedOutputs
    queries: PrunedOutputs
    record: StageRecord
    queries_pruned: int = 0


def encode_sparse(
    chunks: pl.Series,
    metadata: pl.Series,
    queries: pl.Series,
    specs: Sequence[ModelSpec],
    context: ComputeContext,
    *,
    enabled: bool = True,
    top_k: int = TOP_K,
    make_factory: SparseFactoryMaker = sparse_factory,
) -> SparseResult:
    """Encode chunks and queries as sparse vectors.

    The first of ``specs`` that runs makes all vectors, since there is one index space. ``metadata`` (JSON per chunk) is
    for the fallback. ``top_k`` entries stay per chunk. No model, or a limit without room for a text, is a
    ``SettingsError``.
    """
    if not enabled:
        return _disabled(len(chunks), len(queries), specs)
    if not specs:
        raise SettingsError("enable_sparse is on, but no sparse model is chosen. Name one in models.sparse")
    started = context.clock()
    with context.expecting(1) as expecting:
        run, unusable = _first_that_runs(chunks, queries, specs, expecting, top_k, make_factory)
    if run is None:
        run = _without_model(metadata, len(queries), specs, context, next(iter(unusable.values())))
    chunk_vectors = _chunk_vectors(run.chunks, metadata, run.space)
    query_vectors = fill_missing(
        run.queries, lambda rows, _: text_rows(queries.gather(list(rows)).to_list(), run.space)
    )
    _report_fallbacks(run.slug, chunk_vectors, context)
    words = run.space.words
    words += ("",) * (run.dimension - len(words))  # models have more outputs than their tokenizer has tokens
    record = _record(run, chunk_vectors, query_vectors, context.clock() - started)
    record = replace(record, top_k=top_k, dimension=len(words), unusable=unusable)
    return SparseResult(
        chunk_vectors.matrix,
        query_vectors.matrix,
        chunk_vectors.source,
        query_vectors.source,
        words,
        run.space.name,
        record,
    )


def _report_fallbacks(slug: str, chunks: SourcedVectors, context: ComputeContext) -> None:
    """Emit per reason how many chunks got their metadata terms, and how many got no vector."""
    for reason, count in chunks.reasons.items():
        without = chunks.without.get(reason, 0)
        for source, number in (("metadata", count - without), ("none", without)):
            if number:
                context.events.emit("fallback.sparse", model=slug, reason=reason, source=source, count=number)


def _disabled(n_chunks: int, n_queries: int, specs: Sequence[ModelSpec]) -> SparseResult:
    model = specs[0].slug if specs else ""
    return SparseResult(
        empty_matrix(n_chunks),
        empty_matrix(n_queries),
        np.zeros(n_chunks, np.uint8),
        np.zeros(n_queries, np.uint8),
        (),
        "none",
        SparseRecord("sparse", "feature_disabled", items=n_chunks + n_queries, model=model, queries=n_queries),
    )


def _first_that_runs(
    chunks: pl.Series,
    queries: pl.Series,
    specs: Sequence[ModelSpec],
    context: ComputeContext,
    top_k: int,
    make_factory: SparseFactoryMaker,
) -> tuple[_Run | None, dict[str, str]]:
    """Run models until one gives vectors; return its outputs, and why each model before it could not run."""
    unusable: dict[str, str] = {}
    for spec in specs:
        try:
            return _run_model(chunks, queries, spec, context, top_k, make_factory), unusable
        except SettingsError:
            raise
        except Exception as error:  # the stage boundary: every chunk falls back, with the reason recorded
            if says_disk_full(error):
                raise
            unusable[spec.slug] = reason_of(error)
    return None, unusable


def _run_model(
    chunks: pl.Series,
    queries: pl.Series,
    spec: ModelSpec,
    context: ComputeContext,
    top_k: int,
    make_factory: SparseFactoryMaker,
) -> _Run:
    files = context.locate(spec)
    factory = make_factory(spec, files, context.runtime, top_k)
    spec = factory.spec
    context.start_workers(factory)
    texts = EncoderTexts(chunks, queries, factory, files, context.tokens)
    with texts.tables(streamed=context.in_workers) as tables, hold_devices(context, "sparse", spec) as devices:
        with devices.model(factory) as model:
            result = model.run(tables)
        table, windows = texts.input.table, texts.input.windows
        n = len(windows)  # rows of the table: first the chunks' windows, then the queries
        failed = dict(result.failed_rows)
        if len(table) and len(failed) == len(table):
            raise ModelFailedError(spec.slug, Counter(failed.values()).most_common(1)[0][0], len(table), 0)
        index, weight = result.outputs["index"], result.outputs["weight"]
        pruned_queries = np.flatnonzero(result.outputs["active"][n:] > index.shape[1])
        full: dict[int, SparseRow] = {}
        if len(pruned_queries):
            unpruned = make_factory(spec, files, context.runtime, 0)
            with suppress(EnsembleError, DeviceOutOfMemoryError), devices.model(unpruned) as model:
                full = _unpruned(table, n, pruned_queries, spec.dimension, model)
    failed_windows = {row: why for row, why in failed.items() if row < n}
    failed_queries = {row - n: why for row, why in failed.items() if row >= n}
    return _Run(
        spec.slug,
        space_of_model(spec, files),
        spec.dimension,
        PrunedOutputs(*largest_weights(index[:n], weight[:n], windows), failed_texts(failed_windows, windows), {}),
        PrunedOutputs(index[n:], weight[n:], failed_queries, full),
        texts.input.add_counts(record_of("sparse", "completed", spec, files, factory, result)),
        queries_pruned=len(pruned_queries) - len(full),
    )


def _unpruned(
    table: TokenTable, n_windows: int, pruned_queries: NDArray[np.int64], dimension: int, model: HeldModel
) -> dict[int, SparseRow]:
    """Run queries that lost entries to pruning again without pruning: query row -> vector.

    These are few, since queries are short. A query that cannot be run again keeps its pruned vector, and is counted.
    """
    full: dict[int, SparseRow] = {}
    step = max(1, _UNPRUNED_BYTES // (4 * dimension))
    for start in range(0, len(pruned_queries), step):
        some = pruned_queries[start : start + step]
        rows = n_windows + some
        again = model.run(take_rows(table, rows), rows=rows)
        weights = again.outputs["weight"]
        full |= {int(row): positive_entries(weights[at]) for at, row in enumerate(some) if at not in again.failed_rows}
    return full


def _without_model(
    metadata: pl.Series, n_queries: int, specs: Sequence[ModelSpec], context: ComputeContext, reason: str
) -> _Run:
    """Let every row fall back, into the vocabulary of the first model whose tokenizer loads, else the collection's."""
    space: TermSpace | None = None
    for spec in specs:
        try:
            space = vocabulary_space(load_vocabulary(context.locate(spec)))
            break
        except EnsembleError:
            continue
    space = space or collection_space(metadata.to_list())
    n = len(metadata)
    record = StageRecord("sparse", "fallback", items=n + n_queries)
    outputs = PrunedOutputs.missing(n, reason), PrunedOutputs.missing(n_queries, reason)
    return _Run(specs[0].slug, space, len(space.words), *outputs, record)


def _chunk_vectors(outputs: PrunedOutputs, metadata: pl.Series, space: TermSpace) -> SourcedVectors:
    def from_metadata(rows: Sequence[int], live: SparseMatrix) -> list[SparseRow]:
        norm = float(np.median(live.norms())) if len(live.values) else 1.0
        rarity = Rarity.from_metadata(metadata.gather_every(1 + len(metadata) // _CHUNKS_FOR_RARITY))
        return metadata_rows(metadata.gather(list(rows)).to_list(), space, rarity, norm)

    return fill_missing(outputs, from_metadata)


def _record(run: _Run, chunks: SourcedVectors, queries: SourcedVectors, seconds: float) -> SparseRecord:
    total, fell_back = len(chunks.matrix), sum(chunks.reasons.values())
    live, stand_ins = (int((chunks.source == code).sum()) for code in (LIVE, STAND_IN))
    queries_live = int((queries.source == LIVE).sum())
    complete = not fell_back and queries_live == len(queries.matrix)
    status: StageStatus = "fallback" if not run.record.models else "completed" if complete else "partial"
    return extend_record(
        run.record,
        SparseRecord,
        status=status,
        seconds=seconds,
        fallback_count=fell_back,
        fallback_reasons=dict(chunks.reasons),
        model=run.slug,
        index_space=run.space.name,
        vectors_total=total,
        vectors_live=live,
        vectors_from_metadata=stand_ins,
        vectors_available=live + stand_ins,
        coverage_ratio=(live + stand_ins) / total if total else 1.0,
        entries=len(chunks.matrix.values),
        queries=len(queries.matrix),
        queries_live=queries_live,
        queries_pruned=run.queries_pruned,
    )
