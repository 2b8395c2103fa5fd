"""Score candidates by late interaction over a dense model's token states, beside a reranker.

The dense stage has kept the states in the row store, or the texts of the distinct candidates are encoded here. Either
way the row store is asked for the same rows, so the scores are the same: a row that is there is not computed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.backends.model_factory import with_states
from ensemble_assets.compute.backends.token_states import SCALE, STATE, restored
from ensemble_assets.compute.batching.table_result import NOT_FINITE, TokenOutputs
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of, record_of
from ensemble_assets.compute.stages.encoder_input import encoder_input
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.stages.rerank.pairs import number_queries
from ensemble_assets.compute.tokens.token_tables import Template, numbers_of_pieces
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import Windows
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class LateInteraction:
    """Late interaction as a part of the rerank stage.

    Attributes:
        spec: the dense model whose token states are compared.
        chunks: every chunk's text, as the dense stage reads it.
        share: of its scores in the final score.
        states: what was planned about them, ``kept``, ``again`` or ``off``; empty where nothing was.
        off: why it was planned away, a fixed word; empty where it was not.
    """

    spec: ModelSpec
    chunks: pl.Series
    share: float
    states: str = ""
    off: str = ""
    make_factory: FactoryMaker = dense_factory


@dataclass(frozen=True)
class LateScores:
    """Scores of pairs: ``[n_pairs] float32``, NaN for every pair of a query in ``failed``, which says why.

    Without any scores ``reason`` says why, a fixed word. ``seconds`` are the whole part's.
    """

    scores: NDArray[np.float32] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    record: StageRecord | None = None
    seconds: float = 0.0

    def report(self, context: ComputeContext, late: LateInteraction | None, outcome: pl.DataFrame) -> None:
        """Report queries that late interaction did not score but the reranker did; the others are reported anyway."""
        reasons = dict.fromkeys(outcome["public_id"], self.reason) if self.reason else self.failed
        ordered = set(outcome.filter("reranked")["public_id"])
        counts = Counter(why for query, why in reasons.items() if query in ordered)
        for why, count in counts.items():
            assert late is not None
            context.events.emit(
                "fallback.rerank", model=late.spec.slug, reason=why, source="other_reranker", count=count
            )

    def facts(self, late: LateInteraction, queries: int) -> dict[str, Any]:
        """Give the facts about late interaction that the stage's record has."""
        record = self.record
        reasons = {self.reason: queries} if self.reason else dict(Counter(self.failed.values()))
        return {
            "model": late.spec.slug,
            "share": late.share,
            "states": late.states,
            "queries": queries - sum(reasons.values()),
            "fallback_reasons": reasons,
            "pairs_scored": record.items if record else 0,
            "tokens": record.tokens if record else 0,
            "reused": record.reused if record else 0,
            "precision": record.precision if record else "none",
            "seconds": round(self.seconds, 4),
        }


def try_late_scores(
    head: pl.DataFrame, queries: pl.DataFrame, late: LateInteraction, context: ComputeContext
) -> LateScores:
    """Score all pairs by late interaction; whatever goes wrong, the reranker can do without."""
    if late.off or not head.height:
        return LateScores(reason=late.off)
    started = context.clock()
    try:
        scores = late_scores(head, queries, late, context)
    except Exception as error:  # noqa: BLE001  # the boundary of a part of the stage, recorded
        return LateScores(reason=reason_of(error), seconds=context.clock() - started)
    return replace(scores, seconds=context.clock() - started)


def late_scores(
    head: pl.DataFrame, queries: pl.DataFrame, late: LateInteraction, context: ComputeContext
) -> LateScores:
    """Score every pair of ``head``: ``public_id`` of a query and ``row`` of a chunk.

    Raises:
        ModelUnavailableError: if the model has no token states that can be compared.
    """
    files = context.locate(late.spec)
    factory = with_states(late.make_factory(late.spec, files, context.runtime), "alone")
    if factory is None:
        raise ModelUnavailableError(
            f"{late.spec.slug}: late interaction needs an encoder that is one transformer. Choose another model"
        )
    chunk_rows, chunk_of = np.unique(head["row"].to_numpy().astype(np.int64), return_inverse=True)
    texts, query_of = number_queries(head, queries)
    work = encoder_input(late.chunks, texts, factory, files, context.tokens, rows=chunk_rows)
    with hold(context, "rerank", factory.spec, factory) as model:
        result = model.run(work.table)
    assert result.by_token is not None
    states = KeptStates(result.by_token, work.windows, load_vocabulary(files).template)
    scores = states.scores(query_of, chunk_of.astype(np.int64))
    failed: dict[str, str] = {}
    for pair in np.flatnonzero(~np.isfinite(scores)).tolist():
        rows = [*range(*work.rows_of(int(chunk_of[pair]))), len(work.windows) + int(query_of[pair])]
        reason = next((result.failed_rows[row] for row in rows if row in result.failed_rows), NOT_FINITE)
        failed.setdefault(head["public_id"][pair], reason)
    scores[head["public_id"].is_in(list(failed)).to_numpy()] = np.nan
    record = work.add_counts(record_of("rerank", "completed", factory.spec, files, factory, result))
    return LateScores(scores, failed, record=replace(record, items=int(np.isfinite(scores).sum())))


@dataclass(frozen=True)
class KeptStates:
    """The states of one encoder's input: a row per window of every chunk, then a row per query (``EncoderInput``).

    For every query there is one product with all its chunks' tokens. The score is that of
    ``backends.late_interaction``: for every token of the query the largest cosine with a token of the chunk, negative
    ones as 0, squared, and averaged. Special tokens do not count. A chunk that was encoded in windows has the tokens of
    all of them.
    """

    states: TokenOutputs
    windows: Windows
    template: Template

    def scores(self, queries: NDArray[np.int64], chunks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the scores of pairs, ``[n_pairs] float32``; NaN where a text has no states, or some are not finite.

        ``queries`` and ``chunks`` are numbers in the encoder's input, ``[n_pairs]`` each.
        """
        scores = np.full(len(queries), np.nan, np.float32)
        order = np.argsort(queries, kind="stable")
        starts = np.flatnonzero(np.diff(queries[order], prepend=-1))
        for pairs in np.split(order, starts[1:]) if len(order) else ():
            scores[pairs] = self._of_query(int(queries[pairs[0]]), chunks[pairs])
        return scores

    def _of_query(self, query: int, chunks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compare one query with some chunks, ``[n_chunks] float32``."""
        counts = self.windows.counts[chunks]
        rows = numbers_of_pieces(self.windows.first[chunks], counts)
        lengths = self.states.lengths[rows]
        query_rows = np.array([len(self.windows) + query])
        whole = np.minimum.reduceat(lengths, np.cumsum(counts) - counts) > 0
        if not whole.any() or not self.states.lengths[query_rows[0]]:
            return np.full(len(chunks), np.nan, np.float32)
        asked = restored(*self._inner(query_rows))
        codes, scales = self._inner(rows[np.repeat(whole, counts)])
        # tokens of every chunk, without special ones
        inner = np.maximum(lengths - self.template.single_specials, 0)
        sizes = np.add.reduceat(inner, np.cumsum(counts) - counts)[whole]
        scores = np.zeros(len(sizes), np.float32)
        filled = sizes > 0
        if filled.any() and len(asked):
            starts = (np.cumsum(sizes) - sizes)[filled]
            cosines = (
                asked @ codes.astype(np.float32).T
            ) * scales  # scaling products is a pass less than scaling states
            best = np.maximum(np.maximum.reduceat(cosines, starts, axis=1), 0.0)
            scores[filled] = np.mean(best * best, axis=0, dtype=np.float32)
        result = np.full(len(chunks), np.nan, np.float32)
        result[whole] = scores
        return result

    def _inner(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Read bytes and scales of some rows' tokens, without special ones: ``[tokens, width]`` and ``[tokens]``."""
        lengths = self.states.lengths[rows]
        before, specials = len(self.template.single_before), self.template.single_specials
        starts = np.cumsum(lengths) - lengths + before
        inner = numbers_of_pieces(starts, np.maximum(lengths - specials, 0))
        return self.states.read(STATE, rows)[inner], self.states.read(SCALE, rows)[inner]
