"""Make an encoder's input: the windows of all chunks, then all queries, as one token table, or in slices of it.

The dense and the sparse stage share it. ``tokens.windows`` turns results of windows into results of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.running.equal_rows import growing_slices
from ensemble_assets.compute.running.run_table import TableSlice
from ensemble_assets.compute.running.worker_settings import SLICE_BYTES
from ensemble_assets.compute.tokens.kept_tokens import Column
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.token_tables import (
    Template,
    TokenBodies,
    TokenTable,
    join_tables,
    single_table,
    with_task,
)
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import Windows, cut_windows, select_bodies, whole_texts
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class EncoderInput:
    """One model's input: a row per window in the chunks' order, then a row per query.

    ``dropped`` is ``[n_chunks + n_queries] int64``, tokens lost to the model's limit.
    """

    table: TokenTable
    windows: Windows
    dropped: NDArray[np.int64]

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk and the one after its last."""
        first = int(self.windows.first[chunk])
        return first, first + int(self.windows.counts[chunk])

    def add_counts(self, record: StageRecord) -> StageRecord:
        """Return the record with the numbers of texts, of truncated texts, and of tokens that those lost."""
        truncated, dropped = int((self.dropped > 0).sum()), int(self.dropped.sum())
        return replace(record, items=len(self.dropped), truncated=truncated, tokens_dropped=dropped)


@dataclass(frozen=True)
class EncoderTexts:
    """Texts of one model's input, which are tokenised when it is asked for."""

    chunks: pl.Series
    queries: pl.Series
    factory: ForwardFactory
    files: ModelFiles
    cache: TokenCache

    @cached_property
    def input(self) -> EncoderInput:
        """The whole input; see ``encoder_input``."""
        return encoder_input(self.chunks, self.queries, self.factory, self.files, self.cache)

    @contextmanager
    def tables(self, *, streamed: bool) -> Iterator[TokenTable | Iterator[TableSlice]]:
        """Yield the table, or its slices: a thread tokenises the next one while the caller has one.

        Chunks go longest first, by bytes, so that a slice's rows are of similar length. Where rows begin depends on all
        texts before them if a chunk may have windows, or on the model's own preprocessing: then there is one table.
        """
        slices = growing_slices(self.chunks.str.len_bytes().cast(pl.Int64).to_numpy(), SLICE_BYTES)
        one_row_each = self.factory.spec.windows == 1 and self.factory.traits.tokens == "fast"
        if not (streamed and one_row_each and len(slices) > 1):
            yield self.input.table
            return
        with ThreadPoolExecutor(1) as thread:
            yield _one_ahead(thread, self._made(slices))

    def _made(self, slices: list[NDArray[np.int64]]) -> Iterator[TableSlice]:
        spec, vocabulary = self.factory.spec, load_vocabulary(self.files)
        asked = self.cache.bodies(self.queries, vocabulary, spec.max_tokens, spec.query_prefix or "")
        none, prefix = select_bodies(asked, np.empty(0, np.int64)), spec.document_prefix or ""
        parts = self.cache.slices(self.chunks, vocabulary, spec.chunk_tokens, prefix, slices, _column(spec))
        for at, (rows, bodies) in enumerate(zip(slices, parts, strict=True)):
            last = at == len(slices) - 1  # queries are short, and come with the shortest chunks
            table = _joined_rows(bodies, asked if last else none, self.factory, vocabulary.template).table
            yield np.append(rows, np.arange(len(table) - len(rows)) + len(self.chunks)), table


def _one_ahead(thread: ThreadPoolExecutor, items: Iterator[TableSlice]) -> Iterator[TableSlice]:
    """Make the first item at once, and each further one while the caller has the one before it."""
    first = thread.submit(next, items, None)

    def made() -> Iterator[TableSlice]:
        coming = first
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item

    return made()


def encoder_input(
    chunks: pl.Series,
    queries: pl.Series,
    factory: ForwardFactory,
    files: ModelFiles,
    cache: TokenCache,
    *,
    rows: NDArray[np.int64] | None = None,
) -> EncoderInput:
    """Tokenise chunks and queries for a model, or take their ids from the cache; of chunks only ``rows`` if given.

    The shared tokeniser makes the rows where it is proven right for the model. Other models use their preprocessing,
    and have no windows (``ModelUnavailableError``). A ``max_tokens`` without room beside the special tokens is a
    ``SettingsError``.
    """
    if factory.traits.tokens == "library":
        return _own_rows(chunks if rows is None else chunks.gather(rows), queries, factory.spec, files)
    spec, vocabulary = factory.spec, load_vocabulary(files)
    chunk_bodies = cache.bodies(
        chunks,
        vocabulary,
        spec.chunk_tokens,
        spec.document_prefix or "",
        rows=rows,
        column=_column(spec) if rows is None else None,
    )
    query_bodies = cache.bodies(queries, vocabulary, spec.max_tokens, spec.query_prefix or "")
    return _joined_rows(chunk_bodies, query_bodies, factory, vocabulary.template)


def _joined_rows(
    chunk_bodies: TokenBodies, query_bodies: TokenBodies, factory: ForwardFactory, template: Template
) -> EncoderInput:
    spec = factory.spec
    query_table = single_table(query_bodies, template, spec.max_tokens)  # raises if the limit leaves no room
    room = spec.max_tokens - template.single_specials
    windows = cut_windows(chunk_bodies, room, spec.windows)
    chunk_table = single_table(windows.bodies, template, spec.max_tokens)
    if factory.traits.by_task:
        chunk_table, query_table = with_task(chunk_table, "document"), with_task(query_table, "query")
    dropped_of_queries = np.maximum(query_bodies.full_lengths - room, 0)
    dropped = np.concatenate([windows.dropped, dropped_of_queries])
    return EncoderInput(join_tables(chunk_table, query_table), windows, dropped)


def _column(spec: ModelSpec) -> Column:
    return "searched" if spec.kind == "sparse" else "embedded"


def _own_rows(chunks: pl.Series, queries: pl.Series, spec: ModelSpec, files: ModelFiles) -> EncoderInput:
    from ensemble_assets.compute.backends.library.loading import load_row_maker

    if spec.windows > 1:
        raise ModelUnavailableError(
            f"{spec.slug}: cannot be read in windows, since only its own preprocessing makes its rows. "
            "Set models.windows=1, or choose another model"
        )
    model = load_row_maker(spec, files)
    chunk_table, query_table = model.rows(chunks.to_list(), "document"), model.rows(queries.to_list(), "query")
    return EncoderInput(
        join_tables(chunk_table, query_table),
        whole_texts(chunk_table),
        np.concatenate([chunk_table.tokens_lost, query_table.tokens_lost]),
    )
