"""Rerank every query's best fused candidates with a CrossEncoder, with late interaction, or with both.

Late interaction comes first: it is the better and, over kept states, the cheaper one (``late_interaction``). The pairs
of all queries are one work list. A query's scores depend on its own pairs only. Where time is limited, the list is
scored in slices by rank, best first (``depth``). Scores and fused order are mixed by ``scores``.

If one of them could not score a pair of a query, the other alone orders that query. Without either it keeps its fused
order, because half a scored list cannot be ordered fairly.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.records import RerankRecord
from ensemble_assets.artefacts.stage_record import StageRecord, StageStatus, extend_record, merge_records
from ensemble_assets.common.defaults import RERANK_DEPTH
from ensemble_assets.common.errors import SettingsError, says_disk_full
from ensemble_assets.common.frame_schemas import FUSED, conform
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of
from ensemble_assets.compute.stages.rerank.depth import NO_LIMIT, Allowance, TimeLimit
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction, LateScores, try_late_scores
from ensemble_assets.compute.stages.rerank.pairs import Pairs
from ensemble_assets.compute.stages.rerank.scored_pairs import Scored, score_pairs
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.models.spec import ModelSpec

FEATURE_DISABLED = "feature_disabled"


@dataclass(frozen=True)
class RerankOptions:
    """Switch, depth, weight and time of the stage.

    A disabled stage keeps the fused order without counting that as a fallback. ``depth`` candidates per query are
    scored. ``weight`` is the reranker's share in the final score; None takes the model's own. The time counts from the
    stage's call. ``late`` is late interaction beside the reranker, if any; with ``cross_encoder`` off it is alone.
    """

    enabled: bool = True
    depth: int = RERANK_DEPTH
    weight: float | None = None
    allowance: Allowance = NO_LIMIT
    late: LateInteraction | None = None
    cross_encoder: bool = True

    def weight_for(self, spec: ModelSpec, *, beside_late: bool) -> float:
        """Return a reranker's share in the final score, alone or beside late interaction."""
        if self.weight is not None:
            return self.weight
        return spec.share if spec.share_beside_late is None or not beside_late else spec.share_beside_late


@dataclass(frozen=True)
class RerankResult:
    """Output of the rerank stage.

    Attributes:
        reranked: a ``RERANKED`` frame: every candidate of every query.
        queries: one row per query that has candidates: ``public_id``, ``requested_depth`` (UInt32, candidates that were
            to be scored), ``reached_depth`` (UInt32, its best candidates that were scored), ``reranked`` (Boolean) and
            ``reason`` (String, why it was not reranked; null where it was).
        record: the stage's run.
    """

    reranked: pl.DataFrame
    queries: pl.DataFrame
    record: RerankRecord


def rerank_candidates(
    candidates: pl.DataFrame,
    chunks: pl.Series,
    queries: pl.DataFrame,
    spec: ModelSpec,
    context: ComputeContext,
    options: RerankOptions = RerankOptions(),
    *,
    make_factory: FactoryMaker = rerank_factory,
    clock: Callable[[], float] = time.perf_counter,
) -> RerankResult:
    """Rerank every query's first ``depth`` candidates, or as many as time allows; the rest stay below, in fused order.

    ``candidates`` is a ``FUSED`` frame, or one with more columns; ``row`` points into ``chunks``. ``queries`` has
    ``public_id`` and ``text``. A depth, floor or weight out of range is a ``SettingsError``; candidates without these
    columns are an ``ArtefactError``.
    """
    if options.depth < 1:
        raise SettingsError(f"rerank.depth is {options.depth}; expected at least 1")
    started = clock()
    candidates = conform(candidates, FUSED, "fused candidates")
    head = candidates.with_row_index("_at").filter(pl.col("rank") <= options.depth)
    reason = "" if options.enabled and options.cross_encoder else FEATURE_DISABLED
    late = LateScores()
    if options.late is not None and options.enabled:
        late = try_late_scores(head, queries, options.late, context)
    scored: Scored | None = None
    if not reason and head.height:
        try:
            limit = TimeLimit(options.allowance, started, clock)
            with context.expecting(1) as expecting:
                scored = score_pairs(Pairs(head, chunks, queries), spec, expecting, make_factory, limit)
        except SettingsError:
            raise
        except Exception as error:  # the stage boundary: every query keeps its fused order, recorded
            if says_disk_full(error):
                raise
            reason = reason_of(error)
    columns = {"rerank_score": scored.logits if scored else None, "late_score": late.scores}
    with_scores = candidates.with_columns(
        _at_candidates(name, values, head["_at"], candidates.height) for name, values in columns.items()
    )
    failed = (scored.failed if scored else {}) | late.failed
    outcome = _outcome_by_query(with_scores, failed, late.reason or reason, options.depth)
    weight = options.weight_for(spec, beside_late=late.scores is not None)
    asked = options.enabled and options.cross_encoder
    lost = _left_to_late(with_scores, outcome, scored.failed if scored else {}, reason) if asked else Counter[str]()
    record = replace(_record(outcome, scored, late, options, spec, lost), weight=weight)
    for source, reasons in (("fused_order", record.fallback_reasons), ("other_reranker", lost)):
        for why, count in reasons.items():
            context.events.emit("fallback.rerank", model=record.model, reason=why, source=source, count=count)
    late.report(context, options.late, outcome)
    share = options.late.share if options.late and late.scores is not None else 0.0
    reranked = final_order(with_scores, weight, share)
    return RerankResult(reranked, outcome, replace(record, seconds=clock() - started))


def _at_candidates(name: str, values: NDArray[np.float32] | None, places: pl.Series, candidates: int) -> pl.Series:
    """Make a column of scores that are known at some places; null elsewhere, and where one is NaN."""
    column = np.full(candidates, np.nan, np.float32)
    if values is not None:
        column[places.to_numpy()] = values
    return pl.Series(name, column, pl.Float32).fill_nan(None)


# --- the stage's record ---


def _outcome_by_query(with_scores: pl.DataFrame, failed: dict[str, str], whole_reason: str, depth: int) -> pl.DataFrame:
    """Return ``RerankResult.queries``; ``whole_reason`` is for queries without a reason of their own."""
    of_pairs, late = pl.col("rerank_score").count(), pl.col("late_score").count()
    counted = with_scores.group_by("public_id", maintain_order=True).agg(
        (pl.col("rank") <= depth).sum().cast(pl.UInt32).alias("requested_depth"),
        pl.when(of_pairs > 0).then(of_pairs).otherwise(late).cast(pl.UInt32).alias("reached_depth"),
    )
    why = [
        None if reached or not wanted else failed.get(query, whole_reason) or None
        for query, wanted, reached in counted.iter_rows()
    ]
    reason = pl.Series("reason", why, pl.String)
    return counted.with_columns(reason.is_null().alias("reranked"), reason)


def _left_to_late(
    with_scores: pl.DataFrame, outcome: pl.DataFrame, failed: dict[str, str], whole_reason: str
) -> Counter[str]:
    """Count the queries that late interaction orders alone because the reranker failed, by reason."""
    has_logits = pl.col("rerank_score").is_not_null().any()
    without = with_scores.group_by("public_id").agg(has_logits.alias("scored")).filter(~pl.col("scored"))
    left = outcome.filter("reranked", pl.col("requested_depth") > 0).join(without, on="public_id", how="semi")
    return Counter(failed.get(query, whole_reason) for query in left["public_id"])


def _record(
    outcome: pl.DataFrame,
    scored: Scored | None,
    late: LateScores,
    options: RerankOptions,
    spec: ModelSpec,
    lost: Counter[str],
) -> RerankRecord:
    done = int(outcome["reranked"].sum())
    reasons: dict[str, int] = dict(Counter(outcome["reason"].drop_nulls().to_list())) if options.enabled else {}
    fell_back = sum(reasons.values())
    status: StageStatus = "completed" if not (fell_back or lost) else "partial" if done else "fallback"
    causes = ", ".join(f"{count} {why}" for why, count in lost.items())
    alone = f"rerank: {spec.slug} gave no scores for {sum(lost.values())} queries ({causes})"
    said = [f"{alone}, which late interaction ordered by itself" if lost else "", late.warning(options.late)]
    allowance = options.allowance
    cut_short = pl.col("reranked") & (pl.col("reached_depth") < pl.col("requested_depth"))
    # states that this run's dense stage kept are no work of an earlier run; late's own facts count them
    of_late = replace(late.record, reused=0) if late.record else None
    if scored and of_late:  # the same pairs, which are counted where the reranker cut them
        of_late = replace(of_late, truncated=0, tokens_dropped=0)
    parts = [part for part in (scored.record if scored else None, of_late) if part]
    own = (
        merge_records("rerank", status, parts) if late.record else parts[0] if parts else StageRecord("rerank", status)
    )
    model = spec if options.cross_encoder or options.late is None else options.late.spec
    return extend_record(
        own,
        RerankRecord,
        status=status if options.enabled else "feature_disabled",
        fallback_count=fell_back,
        fallback_reasons=reasons,
        model=model.slug,
        queries=outcome.height,
        query_count=outcome.height,
        queries_reranked=done,
        pairs_scored=int(outcome["reached_depth"].sum()),
        depth=options.depth,
        requested_depth=options.depth,
        reached_depth=_depth_of_all_queries(outcome, scored, options),
        queries_cut_short=outcome.filter(cut_short).height,
        largest_batch=scored.largest_batch if scored else 0,
        budget=allowance.against,
        floor_depth=allowance.floor,
        budget_seconds=None if allowance.seconds is None else round(allowance.seconds, 4),
        budget_reason=allowance.reason or None,
        fallback_source=("runtime" if scored or late.record else "load") if fell_back else None,
        warnings=(*own.warnings, *filter(None, said)),
        late=late.facts(options.late, outcome.height) if options.late and options.enabled else None,
    )


def _depth_of_all_queries(outcome: pl.DataFrame, scored: Scored | None, options: RerankOptions) -> int:
    """Return the depth down to which every query's candidates were scored; 0 if a query fell back."""
    if not outcome["reranked"].all():
        return 0
    cut = outcome.filter(pl.col("reached_depth") < pl.col("requested_depth")).height
    return scored.reached if scored and cut else options.depth
