"""Make the rows of all pairs of a query and a candidate, and run slices of them.

A chunk that is too long for a CrossEncoder is cut into windows. The model scores a row for each window of a pair:

    pairs, the rows of ``head``        q1 c4        q1 c7         q2 c4
    windows, and the pair of each      w0 of 0      w1, w2 of 1   w3 of 2      Windows.texts = 0 1 1 2
    rows of the model's table          q1+w0        q1+w1, q1+w2  q2+w3        (query, window)
    a pair's logit                     l0           max(l1, l2)   l3           largest_logits

For late interaction a pair is a row, whose texts are encoded apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.backends.model_traits import MAXSIM
from ensemble_assets.compute.backends.token_states import SCALE_BYTES, STATE
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TableResult, merge_results
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.encoder_input import encoder_input
from ensemble_assets.compute.stages.held_model import HeldModel
from ensemble_assets.compute.stages.kept_states import KeptStates
from ensemble_assets.compute.stages.rerank.token_weights import weights_of_queries
from ensemble_assets.compute.tokens.token_tables import (
    NO_SPECIALS,
    TokenBodies,
    TokenTable,
    pair_lengths,
    pair_table,
    take_rows,
)
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, load_vocabulary
from ensemble_assets.compute.tokens.windows import Windows, cut_windows, whole_texts
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class Pairs:
    """Candidates to be scored: a row of ``head`` per pair, with ``_at``, its place among all candidates.

    ``weights`` of all tokens of a vocabulary, ``[size] float32``, weigh those of queries in late interaction.
    """

    head: pl.DataFrame
    chunks: pl.Series
    queries: pl.DataFrame
    weights: NDArray[np.float32] | None = None


_BYTES_A_TOKEN = 3
"""Of a text, where only a model's own preprocessing makes tokens: few, so that too many states are expected."""

_STATES_AT_ONCE = 768 * 2**20
"""Most bytes of token states that are made before they are compared: 8,000 chunks of 240 tokens of width 384."""


@dataclass(frozen=True)
class RowScores:
    """Scores of some rows, ``[n] float32``, and what they took.

    ``failed`` has the reason of a row without a score, by its place. ``truncated`` texts lost ``tokens_dropped``.
    """

    logits: NDArray[np.float32]
    failed: dict[int, str] = field(default_factory=dict)
    result: TableResult = field(default_factory=TableResult)
    truncated: int = 0
    tokens_dropped: int = 0


@dataclass(frozen=True)
class PairRows:
    """The rows of all pairs, of which slices are run.

    Attributes:
        ranks: of the pair that a row belongs to, ``[n] uint32``.
        windows: the rows of each pair.
        lengths: tokens that every row adds to the work, ``[n] int64``.
        run: scores some rows with a model.
    """

    ranks: NDArray[np.uint32]
    windows: Windows
    lengths: NDArray[np.int64]
    run: Callable[[HeldModel, NDArray[np.int64]], RowScores]


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
        run=partial(
            _scored_together,
            lambda chosen: pair_table(query_bodies, windows.bodies, rows[chosen], template, limit),
            uncut_tokens,
        ),
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
        run=partial(_scored_together, lambda chosen: take_rows(table, chosen), lambda chosen: int(uncut[chosen].sum())),
    )


def _scored_together(
    table: Callable[[NDArray[np.int64]], TokenTable],
    uncut_tokens: Callable[[NDArray[np.int64]], int],
    held: HeldModel,
    chosen: NDArray[np.int64],
) -> RowScores:
    """Run some rows of both texts, of which ``table`` makes the token table and ``uncut_tokens`` counts the tokens."""
    some = table(chosen)
    result = held.run(some, rows=chosen)
    dropped = uncut_tokens(chosen) - int(some.offsets[-1])
    return RowScores(result.outputs["logit"], result.failed_rows, result, int(some.truncated.sum()), dropped)


def late_rows(pairs: Pairs, factory: ForwardFactory, files: ModelFiles, context: ComputeContext) -> PairRows:
    """Make a row for each pair, whose texts are encoded apart by ``factory`` and compared by their token states.

    A chunk adds its tokens to the work of the best-ranked pair that it is in. It is encoded again in a later slice only
    where rows are not stored.
    """
    spec = factory.spec
    ranks, chunks = pairs.head["rank"].to_numpy(), pairs.head["row"].to_numpy().astype(np.int64)
    if factory.traits.tokens == "library":  # counted when they are encoded
        tokens = pairs.chunks.gather(chunks).str.len_bytes().cast(pl.Int64).to_numpy() // _BYTES_A_TOKEN
    else:
        prefix = spec.document_prefix or ""
        tokens = context.tokens.bodies(
            pairs.chunks, load_vocabulary(files), spec.chunk_tokens, prefix, rows=chunks
        ).full_lengths
    tokens = np.minimum(tokens, spec.chunk_tokens or tokens)
    best_first = np.argsort(ranks, kind="stable")
    first = best_first[np.unique(chunks[best_first], return_index=True)[1]]
    every, none = np.arange(len(ranks)), np.zeros(len(ranks), np.int64)

    def run(held: HeldModel, chosen: NDArray[np.int64]) -> RowScores:
        queries = pairs.head["public_id"].gather(chosen).rle_id().to_numpy()  # pairs come query by query
        size = factory.width * np.dtype(factory.outputs[STATE].dtype).itemsize + SCALE_BYTES
        group = np.cumsum(tokens[chosen] * size) // _STATES_AT_ONCE
        group = group[np.searchsorted(queries, queries)]  # a query's pairs together
        parts = np.split(chosen, np.flatnonzero(np.diff(group)) + 1)
        made = [_scored_apart(replace(pairs, head=pairs.head[part]), factory, files, context, held) for part in parts]
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        return RowScores(
            np.concatenate([part.logits for part in made]),
            {at + row: why for at, part in zip(starts, made, strict=False) for row, why in part.failed.items()},
            merge_results([part.result for part in made]),
            sum(part.truncated for part in made),
            sum(part.tokens_dropped for part in made),
        )

    lengths = none.copy()
    lengths[first] = tokens[first]
    return PairRows(ranks, Windows(TokenBodies(np.empty(0, np.int32), none, none, 1), every, none), lengths, run)


def _scored_apart(
    pairs: Pairs, factory: ForwardFactory, files: ModelFiles, context: ComputeContext, held: HeldModel
) -> RowScores:
    head = pairs.head
    chunk_rows, chunk_of = np.unique(head["row"].to_numpy().astype(np.int64), return_inverse=True)
    texts, query_of = number_queries(head, pairs.queries)
    work = encoder_input(pairs.chunks, texts, factory, files, context.tokens, rows=chunk_rows)
    result = held.run(work.table)
    assert result.by_token is not None
    traits = factory.traits
    template = NO_SPECIALS if traits.similarity in MAXSIM else load_vocabulary(files).template
    if traits.head:  # which is applied to all tokens but the first
        template = replace(template, single_after=())
    weights = None if pairs.weights is None else weights_of_queries(pairs.weights, work, template)
    states = KeptStates(result.by_token, work.windows, template, traits.compared)
    scores = states.scores(query_of, chunk_of.astype(np.int64), weights)
    failed: dict[int, str] = {}
    for pair in np.flatnonzero(~np.isfinite(scores)).tolist():
        rows = [*range(*work.rows_of(int(chunk_of[pair]))), len(work.windows) + int(query_of[pair])]
        failed[pair] = next((result.failed_rows[row] for row in rows if row in result.failed_rows), NOT_FINITE)
    return RowScores(scores, failed, result, int((work.dropped > 0).sum()), int(work.dropped.sum()))


def _windows(query_tokens: NDArray[np.int64], chunks: TokenBodies, vocabulary: Vocabulary, spec: ModelSpec) -> Windows:
    """Cut every pair's chunk into windows that fit beside the pair's query, of ``query_tokens`` ``[n_pairs] int64``.

    A query counts as at most half of the room, so that long queries leave room for a window. With one window the chunk
    stays whole, and both texts of a pair are cut where they do not fit together.
    """
    room = spec.max_tokens - vocabulary.template.pair_specials
    if spec.windows == 1:
        return Windows(chunks, np.arange(len(chunks)), np.zeros(len(chunks), np.int64))
    return cut_windows(chunks, room - np.minimum(query_tokens, room // 2), spec.windows)
