"""What an encoder is given: the windows of all chunks, then all queries, as one token table.

Dense and sparse stages share it. How results of windows become results of chunks is ``windows``.
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
from ensemble_assets.compute.tokens.windows import Windows, windows_of
from ensemble_assets.models.registry import ModelSpec


@dataclass(frozen=True)
class EncoderWork:
    """One model's work.

    Attributes:
        table: a row per window, in the chunks' order, then a row per query.
        windows: of the chunks.
        dropped: ``[n_chunks + n_queries] int64``, tokens lost to the model's limit.
    """

    table: TokenTable
    windows: Windows
    dropped: NDArray[np.int64]

    def counted(self, record: StageRecord) -> StageRecord:
        """The record with what is known before anything runs: items, and what they lost to the model's limit."""
        lost = int((self.dropped > 0).sum()), int(self.dropped.sum())
        return replace(record, items=len(self.dropped), truncated=lost[0], tokens_dropped=lost[1])


def encoder_work(
    chunks: pl.Series, queries: pl.Series, spec: ModelSpec, known: Vocabulary, tokens: TokenCache
) -> EncoderWork:
    """Tokenise chunks and queries for a model, or take their ids from the cache.

    Raises:
        StageError: if the tokenizer fails on a text.
        SettingsError: if ``max_tokens`` leaves no room beside the special tokens.
    """
    template = known.template
    of_chunks = tokens.bodies(chunks, known, spec.chunk_tokens, spec.document_prefix)
    of_queries = tokens.bodies(queries, known, spec.max_tokens, spec.query_prefix)
    query_table = single_table(of_queries, template, spec.max_tokens)
    room = spec.max_tokens - template.single_specials
    windows = windows_of(of_chunks, room, spec.windows)
    table = join_tables(single_table(windows.bodies, template, spec.max_tokens), query_table)
    return EncoderWork(table, windows, np.concatenate([windows.dropped, np.maximum(of_queries.full_lengths - room, 0)]))
