"""Make the rows of all pairs of a query and a candidate, from which the slices' token tables are taken.

A chunk that is too long for the model is cut into windows. The model scores a row for each window of a pair:

    pairs, the rows of ``head``        q1 c4        q1 c7         q2 c4
    windows, and the pair of each      w0 of 0      w1, w2 of 1   w3 of 2      Windows.texts = 0 1 1 2
    rows of the model's table          q1+w0        q1+w1, q1+w2  q2+w3        (query, window)
    a pair's logit                     l0           max(l1, l2)   l3           largest_logits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.tokens.token_tables import (
    TokenBodies,
    TokenTable,
    pair_lengths,
    pair_table,
    take_rows,
)
from ensemble_assets.compute.tokens.tokenizer import Vocabulary
from ensemble_assets.compute.tokens.windows import Windows, cut_windows, whole_texts
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class Pairs:
    """Candidates to be scored: a row of ``head`` per pair, with ``_at``, its place among all candidates."""

    head: pl.DataFrame
    chunks: pl.Series
    queries: pl.DataFrame


@dataclass(frozen=True)
class PairRows:
    """The rows of all pairs, from which a slice's token table is made.

    Attributes:
        ranks: of the pair that a row belongs to, ``[n] uint32``.
        windows: the rows of each pair.
        lengths: tokens of every row, ``[n] int64``.
        table: makes the token table of some rows, in the given order.
        uncut_tokens: counts the tokens that the table of some rows would have if nothing were cut.
    """

    ranks: NDArray[np.uint32]
    windows: Windows
    lengths: NDArray[np.int64]
    table: Callable[[NDArray[np.int64]], TokenTable]
    uncut_tokens: Callable[[NDArray[np.int64]], int]


def number_queries(head: pl.DataFrame, queries: pl.DataFrame) -> tuple[pl.Series, NDArray[np.int64]]:
    """Return the texts of the queries that have pairs in ``head``, and each pair's place among them."""
    if queries.height == 1 and (head["public_id"] == queries["public_id"][0]).all():  # a question, which cannot wait
        return queries["text"].head(head.height), np.zeros(head.height, np.int64)
    asked = queries.join(head.select("public_id").unique(), on="public_id", how="semi", maintain_order="left")
    numbers = pl.DataFrame({"public_id": asked["public_id"], "_query": np.arange(asked.height)})
    numbered = head.join(numbers, on="public_id", how="left", maintain_order="left", validate="m:1")
    return asked["text"], numbered["_query"].to_numpy().astype(np.int64)


def tokenised_rows(pairs: Pairs, vocabulary: Vocabulary, spec: ModelSpec, context: ComputeContext) -> PairRows:
    """Tokenise the texts of all pairs and cut their chunks into windows: a row for each window of a pair's chunk."""
    head = pairs.head
    texts, query_of_pair = number_queries(head, pairs.queries)
    query_bodies = context.tokens.bodies(texts, vocabulary, spec.max_tokens, spec.query_prefix or "")
    chunk_bodies = context.tokens.bodies(
        pairs.chunks,
        vocabulary,
        spec.chunk_tokens,
        spec.document_prefix or "",
        rows=head["row"].to_numpy().astype(np.int64),
    )
    windows = _windows(query_bodies.full_lengths[query_of_pair], chunk_bodies, vocabulary, spec)
    template, limit = vocabulary.template, spec.max_tokens
    rows = np.stack([query_of_pair[windows.texts], np.arange(len(windows))], axis=1)  # of queries and of windows

    def uncut_tokens(chosen: NDArray[np.int64]) -> int:
        of_queries, of_windows = rows[chosen].T
        both = query_bodies.full_lengths[of_queries] + windows.bodies.full_lengths[of_windows]
        return int(both.sum()) + len(chosen) * template.pair_specials

    return PairRows(
        ranks=head["rank"].to_numpy()[windows.texts],
        windows=windows,
        lengths=pair_lengths(query_bodies, windows.bodies, rows, template, limit),
        table=lambda chosen: pair_table(query_bodies, windows.bodies, rows[chosen], template, limit),
        uncut_tokens=uncut_tokens,
    )


def own_rows(pairs: Pairs, spec: ModelSpec, files: ModelFiles) -> PairRows:
    """Make the rows of all pairs by the model's own preprocessing, uncut chunks beside their queries."""
    from ensemble_assets.compute.backends.library.loading import load_row_maker

    head = pairs.head
    asked = head.join(pairs.queries.select("public_id", "text"), on="public_id", how="left", maintain_order="left")
    texts = zip(asked["text"], pairs.chunks.gather(head["row"]), strict=True)
    table = load_row_maker(spec, files).rows(list(texts), "document")
    uncut = table.lengths + table.tokens_lost
    return PairRows(
        ranks=head["rank"].to_numpy(),
        windows=whole_texts(table),
        lengths=table.lengths,
        table=lambda chosen: take_rows(table, chosen),
        uncut_tokens=lambda chosen: int(uncut[chosen].sum()),
    )


def _windows(query_tokens: NDArray[np.int64], chunks: TokenBodies, vocabulary: Vocabulary, spec: ModelSpec) -> Windows:
    """Cut every pair's chunk into windows that fit beside the pair's query, of ``query_tokens`` ``[n_pairs] int64``.

    A query counts as at most half of the room, so that long queries leave room for a window. With one window the chunk
    stays whole, and both texts of a pair are cut where they do not fit together.

    For late interaction a chunk is cut in the same places beside every query, so that it is encoded once for all.
    Queries count as at most a quarter of the room; a longer query cuts the chunk further.
    """
    room = spec.max_tokens - vocabulary.template.pair_specials
    if spec.pooling == "late_interaction":
        return cut_windows(chunks, room - min(int(query_tokens.max()), room // 4), spec.windows)
    if spec.windows == 1:
        return Windows(chunks, np.arange(len(chunks)), np.zeros(len(chunks), np.int64))
    return cut_windows(chunks, room - np.minimum(query_tokens, room // 2), spec.windows)
