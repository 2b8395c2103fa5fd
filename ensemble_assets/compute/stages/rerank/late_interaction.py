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
from ensemble_assets.common.errors import says_disk_full
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.backends.forward import states_alone
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of
from ensemble_assets.compute.stages.rerank.depth import NO_LIMIT, TimeLimit
from ensemble_assets.compute.stages.rerank.pairs import Pairs
from ensemble_assets.compute.stages.rerank.scored_pairs import score_pairs
from ensemble_assets.compute.stages.rerank.token_weights import COLLECTION_FREQUENCY, token_weights
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
        bytes: of the states of all tokens, by the plan.
        weighed_by: what the weights of a query's tokens are, ``collection_frequency`` or empty for equal ones.
        weights: of all tokens of the vocabulary, ``[size] float32``; made of ``chunks`` where they are not given.
    """

    spec: ModelSpec
    chunks: pl.Series
    share: float
    states: str = ""
    off: str = ""
    bytes: int = 0
    weighed_by: str = COLLECTION_FREQUENCY
    weights: NDArray[np.float32] | None = None
    make_factory: FactoryMaker = dense_factory


@dataclass(frozen=True)
class LateScores:
    """Scores of pairs: ``[n_pairs] float32``, NaN for every pair of a query in ``failed``, which says why.

    Without any scores ``reason`` says why, a fixed word. ``seconds`` are the whole part's, ``weighed_by`` is what the
    weights were.
    """

    scores: NDArray[np.float32] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    record: StageRecord | None = None
    seconds: float = 0.0
    weighed_by: str = ""

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

    def warning(self, late: LateInteraction | None) -> str:
        """Say why late interaction was planned away, and the remedy; empty where there is none, or it took part."""
        if late is None:
            return ""
        remedies = {
            "over_states_gb": f"states of all tokens take {late.bytes / 1e9:.1f} GB, more than rerank.states_gb, and "
            "there are too many candidates to encode them again. Set rerank.states_gb higher, if the disk has room",
            "no_reuse": "encoding.reuse is off, and there are too many candidates to encode them again",
        }
        remedy = remedies.get(self.reason, "")
        return f"rerank: late interaction took no part: {remedy}" if remedy else ""

    def facts(self, late: LateInteraction, queries: int) -> dict[str, Any]:
        """Give the facts about late interaction that the stage's record has."""
        record = self.record
        reasons = {self.reason: queries} if self.reason else dict(Counter(self.failed.values()))
        return {
            "model": late.spec.slug,
            "share": late.share,
            "states": late.states,
            "weighed_by": self.weighed_by,
            "queries": queries - sum(reasons.values()),
            "fallback_reasons": reasons,
            "pairs_scored": record.items if record else 0,
            "tokens": record.tokens if record else 0,
            "reused": record.reused if record else 0,
            "precision": record.precision if record else "none",
            "seconds": round(self.seconds, 4),
        }


def with_weights(late: LateInteraction, context: ComputeContext) -> LateInteraction:
    """Make the weights of queries' tokens, once for all questions; a model's own head goes without.

    Raises:
        ModelUnavailableError: if the model cannot be found.
    """
    if late.weights is not None or not late.weighed_by:
        return late
    files = context.locate(late.spec)
    factory = late.make_factory(late.spec, files, context.runtime)
    if factory.traits.head:  # whose vectors are compared without weights
        return replace(late, weighed_by="")
    spec, vocabulary = factory.spec, load_vocabulary(files)
    bodies = context.tokens.bodies(
        late.chunks, vocabulary, spec.chunk_tokens, spec.document_prefix or "", column="embedded"
    )
    return replace(late, weights=token_weights(bodies, spec.chunk_tokens, vocabulary.size))


def try_late_scores(
    head: pl.DataFrame, queries: pl.DataFrame, late: LateInteraction, context: ComputeContext
) -> LateScores:
    """Score all pairs by late interaction; whatever goes wrong, the reranker can do without."""
    if late.off or not head.height:
        return LateScores(reason=late.off)
    started = context.clock()
    try:
        late = with_weights(late, context)
        pairs, limit = Pairs(head, late.chunks, queries, late.weights), TimeLimit(NO_LIMIT, started, context.clock)
        scored = score_pairs(pairs, late.spec, context, lambda *model: states_alone(late.make_factory(*model)), limit)
    except Exception as error:  # the boundary of a part of the stage, recorded
        if says_disk_full(error):
            raise
        return LateScores(reason=reason_of(error), seconds=context.clock() - started)
    record = replace(scored.record, items=int(np.isfinite(scored.logits).sum()))
    seconds = context.clock() - started
    return LateScores(scored.logits, scored.failed, record=record, seconds=seconds, weighed_by=late.weighed_by)
