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
from ensemble_assets.compute.batching.table_result import NOT_FINITE
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of, record_of
from ensemble_assets.compute.stages.encoder_input import encoder_input
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.stages.kept_states import KeptStates
from ensemble_assets.compute.stages.rerank.pairs import number_queries
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.spec import ModelSpec


@dataclass(frozen=True)
class LateInteraction:
    """Late interaction as a part of the rerank stage.

    Attributes:
        spec: the dense model whose token states are compared.
        chunks: every chunk's text, as the dense stage reads it.
        share: of its scores in the final score.
        states: the plan for them, ``kept``, ``again`` or ``off``; empty without one.
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
