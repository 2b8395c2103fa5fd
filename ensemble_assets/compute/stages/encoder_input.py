"""Make an encoder's input: the windows of all chunks, then all queries, as one token table.

The dense and the sparse stage share it. ``tokens.windows`` turns results of windows into results of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.compute.tokens.token_cache import TokenCache
from ensemble_assets.compute.tokens.token_tables import TokenTable, join_tables, single_table
from ensemble_assets.compute.tokens.tokenizer import Vocabulary
from ensemble_assets.compute.tokens.windows import Windows, cut_windows
from ensemble_assets.models.registry import ModelSpec


@dataclass(frozen=True)
class EncoderInput:
    """One model's input.

    Attributes:
        table: a row per window, in the chunks' order, then a row per query.
        windows: of the chunks.
        dropped: ``[n_chunks + n_queries] int64``, tokens lost to the model's limit.
    """

    table: TokenTable
    windows: Windows
    dropped: NDArray[np.int64]

    def add_counts(self, record: StageRecord) -> StageRecord:
        """Return the record with the numbers of texts, of truncated texts, and of tokens that those lost."""
        truncated, dropped = int((self.dropped > 0).sum()), int(self.dropped.sum())
        return replace(record, items=len(self.dropped), truncated=truncated, tokens_dropped=dropped)


def encoder_input(
    chunks: pl.Series, queries: pl.Series, spec: ModelSpec, vocabulary: Vocabulary, cache: TokenCache
) -> EncoderInput:
    """Tokenise chunks and queries for a model, or take their ids from the cache.

    Raises:
        StageError: if the tokenizer fails on a text.
        SettingsError: if ``max_tokens`` leaves no room beside the special tokens.
    """
    template = vocabulary.template
    chunk_bodies = cache.bodies(chunks, vocabulary, spec.chunk_tokens, spec.document_prefix)
    query_bodies = cache.bodies(queries, vocabulary, spec.max_tokens, spec.query_prefix)
    query_table = single_table(query_bodies, template, spec.max_tokens)  # raises if the limit leaves no room
    room = spec.max_tokens - template.single_specials
    windows = cut_windows(chunk_bodies, room, spec.windows)
    table = join_tables(single_table(windows.bodies, template, spec.max_tokens), query_table)
    dropped_of_queries = np.maximum(query_bodies.full_lengths - room, 0)
    return EncoderInput(table, windows, np.concatenate([windows.dropped, dropped_of_queries]))
