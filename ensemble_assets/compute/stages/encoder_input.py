"""Make an encoder's input: the windows of all chunks, then all queries, as one token table.

The dense and the sparse stage share it. ``tokens.windows`` turns results of windows into results of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.token_tables import TokenTable, join_tables, single_table, with_task
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import Windows, cut_windows, whole_texts
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
    template = vocabulary.template
    chunk_bodies = cache.bodies(chunks, vocabulary, spec.chunk_tokens, spec.document_prefix or "", rows=rows)
    query_bodies = cache.bodies(queries, vocabulary, spec.max_tokens, spec.query_prefix or "")
    query_table = single_table(query_bodies, template, spec.max_tokens)  # raises if the limit leaves no room
    room = spec.max_tokens - template.single_specials
    windows = cut_windows(chunk_bodies, room, spec.windows)
    chunk_table = single_table(windows.bodies, template, spec.max_tokens)
    if factory.traits.by_task:
        chunk_table, query_table = with_task(chunk_table, "document"), with_task(query_table, "query")
    dropped_of_queries = np.maximum(query_bodies.full_lengths - room, 0)
    dropped = np.concatenate([windows.dropped, dropped_of_queries])
    return EncoderInput(join_tables(chunk_table, query_table), windows, dropped)


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
