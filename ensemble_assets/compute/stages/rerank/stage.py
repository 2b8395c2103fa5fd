"""Rerank every query's best fused candidates with a CrossEncoder, with late interaction, or with both.

Late interaction comes first: it is the better and, over kept states, the cheaper one (``late_interaction``). The pairs
of all queries are one work list. A query's scores depend on its own pairs only. Where time is limited, the list is
scored in slices by rank, best first (``rerank_depth``). Scores and fused order are mixed by ``rerank_scores``.

A query with a pair that one of them could not score is ordered by the other alone, and without either keeps its fused
order: half a scored list cannot be ordered fairly.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.records import RerankRecord
from ensemble_assets.artefacts.stage_record import StageRecord, StageStatus, extend_record, merge_records
from ensemble_assets.common.defaults import RERANK_DEPTH
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.frame_schemas import FUSED, conform
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.batching.table_result import merge_results
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of, record_of
from ensemble_assets.compute.stages.held_model import hold
from ensemble_assets.compute.stages.rerank.depth import (
    NO_LIMIT,
    Allowance,
    OwnPairRows,
    PairRows,
    PairWork,
    SliceResults,
    TimeLimit,
    score_slices,
)
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction, late_scores
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, load_vocabulary
from ensemble_assets.compute.tokens.windows import (
    Windows,
    cut_windows,
    failed_texts,
    largest_logits,
    whole_texts,
)
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

FEATURE_DISABLED = "feature_disabled"


@dataclass(frozen=True)
class RerankOptions:
    """Switch, depth, weight and time of the stage.

    A disabled stage keeps the fused order without counting that as a fallback. ``depth`` candidates per query are
    scored. ``weight`` is the reranker's share in the final score; None takes the model's own. The time counts from the
    stage's call. ``late`` is late interaction beside the
    reranker, if any; with ``cross_encoder`` off it is alone.
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


@dataclass(frozen=True)
class _Pairs:
    """Candidates to be scored: a row of ``head`` per pair, with ``_at``, its place among all candidates."""

    head: pl.DataFrame
    chunks: pl.Series
    queries: pl.DataFrame


@dataclass(frozen=True)
class _Scored:
    """Scores of pairs: ``logits`` ``[n_pairs] float32``, NaN where there is none, down to rank ``reached``.

    ``failed`` says why a query is not reranked; ``largest_batch`` is in tokens.
    """

    logits: NDArray[np.float32]
    failed: dict[str, str]
    reached: int
    record: StageRecord
    largest_batch: int


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
    late = _Late() if options.late is None or not options.enabled else _late(head, queries, options.late, context)
    scored: _Scored | None = None
    if not reason and head.height:
        try:
            limit = TimeLimit(options.allowance, started, clock)
            with context.expecting(1) as expecting:
                scored = _score(_Pairs(head, chunks, queries), spec, expecting, make_factory, limit)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001  # the stage boundary: every query keeps its fused order, recorded
            reason = reason_of(error)
    columns = {"rerank_score": scored.logits if scored else None, "late_score": late.scores}
    with_scores = candidates.with_columns(
        _at_candidates(name, values, head["_at"], candidates.height) for name, values in columns.items()
    )
    failed = (scored.failed if scored else {}) | late.failed
    outcome = _outcome_by_query(with_scores, failed, late.reason or reason, options.depth)
    weight = options.weight_for(spec, beside_late=late.scores is not None)
    record = replace(_record(outcome, scored, late, options, spec), weight=weight)
    for why, count in record.fallback_reasons.items():
        context.events.emit("fallback.rerank", model=record.model, reason=why, source="fused_order", count=count)
    late.tell(context, options.late, outcome)
    share = options.late.share if options.late and late.scores is not None else 0.0
    reranked = final_order(with_scores, weight, share)
    return RerankResult(reranked, outcome, replace(record, seconds=clock() - started))


def _at_candidates(name: str, values: NDArray[np.float32] | None, places: pl.Series, candidates: int) -> pl.Series:
    """Make a column of scores that are known at some places; null elsewhere, and where one is NaN."""
    column = np.full(candidates, np.nan, np.float32)
    if values is not None:
        column[places.to_numpy()] = values
    return pl.Series(name, column, pl.Float32).fill_nan(None)


# --- late interaction ---


@dataclass(frozen=True)
class _Late:
    """Outcome of late interaction: scores ``[n_pairs] float32`` or None, and the reason for all queries or for some."""

    scores: NDArray[np.float32] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    record: StageRecord | None = None
    seconds: float = 0.0

    def tell(self, context: ComputeContext, late: LateInteraction | None, outcome: pl.DataFrame) -> None:
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
        """Give what the stage's record tells of it."""
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


def _late(head: pl.DataFrame, queries: pl.DataFrame, late: LateInteraction, context: ComputeContext) -> _Late:
    """Score all pairs by late interaction; whatever goes wrong, the reranker can do without."""
    if late.off or not head.height:
        return _Late(reason=late.off)
    started = context.clock()
    try:
        scores = late_scores(head, queries, late, context)
    except Exception as error:  # noqa: BLE001  # the boundary of a part of the stage, recorded
        return _Late(reason=reason_of(error), seconds=context.clock() - started)
    return _Late(scores.scores, scores.failed, "", scores.record, context.clock() - started)


# --- scoring pairs ---
#
# A chunk that is too long for the model is cut into windows. The model scores a row for each window of a pair:
#
#     pairs, the rows of ``head``        q1 c4        q1 c7         q2 c4
#     windows, and the pair of each      w0 of 0      w1, w2 of 1   w3 of 2      Windows.texts = 0 1 1 2
#     rows of the model's table          q1+w0        q1+w1, q1+w2  q2+w3        PairWork.rows: (query, window)
#     a pair's logit                     l0           max(l1, l2)   l3           largest_logits


def _score(
    pairs: _Pairs, spec: ModelSpec, context: ComputeContext, make_factory: FactoryMaker, limit: TimeLimit
) -> _Scored:
    files = context.locate(spec)
    factory = make_factory(spec, files, context.runtime)
    spec = factory.spec
    context.start_workers(factory)
    if factory.traits.tokens == "library":
        work: PairRows = _own_rows(pairs, spec, files)
    else:
        work = _tokenised(pairs, load_vocabulary(files), spec, context)
    with hold(context, "rerank", spec, factory) as held:
        slices = score_slices(work, held, limit)
    result = merge_results(slices.results)
    record = record_of("rerank", "completed", spec, files, factory, result)
    return _by_pair(pairs.head, work, slices, record, result.largest_batch)


def _tokenised(pairs: _Pairs, vocabulary: Vocabulary, spec: ModelSpec, context: ComputeContext) -> PairWork:
    """Tokenise the texts of all pairs and cut their chunks into windows."""
    head = pairs.head
    asked = pairs.queries.join(head.select("public_id").unique(), on="public_id", how="semi", maintain_order="left")
    query_bodies = context.tokens.bodies(asked["text"], vocabulary, spec.max_tokens, spec.query_prefix or "")
    numbers = pl.DataFrame({"public_id": asked["public_id"], "_query": np.arange(asked.height)})
    numbered = head.join(numbers, on="public_id", how="left", maintain_order="left", validate="m:1")
    query_of_pair = numbered["_query"].to_numpy().astype(np.int64)
    chunk_bodies = context.tokens.bodies(
        pairs.chunks,
        vocabulary,
        spec.chunk_tokens,
        spec.document_prefix or "",
        rows=head["row"].to_numpy().astype(np.int64),
    )
    windows = _windows(query_bodies.full_lengths[query_of_pair], chunk_bodies, vocabulary, spec)
    return PairWork(
        ranks=head["rank"].to_numpy()[windows.texts],
        rows=np.stack([query_of_pair[windows.texts], np.arange(len(windows))], axis=1),
        queries=query_bodies,
        windows=windows,
        template=vocabulary.template,
        max_tokens=spec.max_tokens,
    )


def _own_rows(pairs: _Pairs, spec: ModelSpec, files: ModelFiles) -> OwnPairRows:
    """Make the rows of all pairs by the model's own preprocessing, uncut chunks beside their queries."""
    from ensemble_assets.compute.backends.library.loading import load_row_maker

    head = pairs.head
    asked = head.join(pairs.queries.select("public_id", "text"), on="public_id", how="left", maintain_order="left")
    texts = zip(asked["text"], pairs.chunks.gather(head["row"]), strict=True)
    table = load_row_maker(spec, files).rows(list(texts), "document")
    return OwnPairRows(head["rank"].to_numpy(), table, whole_texts(table))


def _windows(query_tokens: NDArray[np.int64], chunks: TokenBodies, vocabulary: Vocabulary, spec: ModelSpec) -> Windows:
    """Cut every pair's chunk into windows that fit beside the pair's query, of ``query_tokens`` ``[n_pairs] int64``.

    A query counts as at most half of the room, so that long queries leave room for a window. With one window the chunk
    stays whole, and both texts of a pair are cut where they do not fit together.

    For late interaction a chunk is cut alike beside every query, so that it is encoded once for all of them. Queries
    count as at most a quarter of the room; a longer query cuts the chunk further.
    """
    room = spec.max_tokens - vocabulary.template.pair_specials
    if spec.pooling == "late_interaction":
        return cut_windows(chunks, room - min(int(query_tokens.max()), room // 4), spec.windows)
    if spec.windows == 1:
        return Windows(chunks, np.arange(len(chunks)), np.zeros(len(chunks), np.int64))
    return cut_windows(chunks, room - np.minimum(query_tokens, room // 2), spec.windows)


def _by_pair(
    head: pl.DataFrame, work: PairRows, slices: SliceResults, record: StageRecord, largest_batch: int
) -> _Scored:
    """Turn results of windows into results of pairs, and failed pairs into failed queries."""
    failed: dict[str, str] = {}  # of a query, the reason of its best-ranked failed pair
    for pair, reason in sorted(failed_texts(slices.failed, work.windows).items()):
        failed.setdefault(head["public_id"][pair], reason)
    without = head["public_id"].is_in(list(failed)).to_numpy()
    logits = np.where(without, np.float32(np.nan), largest_logits(slices.logits, work.windows))
    scored = head["rank"].to_numpy() <= slices.reached
    lost = work.windows.dropped[scored]
    record = replace(
        record,
        items=int(scored.sum()),
        truncated=slices.truncated + int((lost > 0).sum()),
        tokens_dropped=slices.tokens_dropped + int(lost.sum()),
    )
    return _Scored(logits, failed, slices.reached, record, largest_batch)


# --- the stage's record ---


def _outcome_by_query(with_scores: pl.DataFrame, failed: dict[str, str], whole_reason: str, depth: int) -> pl.DataFrame:
    """Return ``RerankResult.queries``; ``whole_reason`` holds for every query without a score of its own reason."""
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


def _record(
    outcome: pl.DataFrame, scored: _Scored | None, late: _Late, options: RerankOptions, spec: ModelSpec
) -> RerankRecord:
    done = int(outcome["reranked"].sum())
    reasons: dict[str, int] = dict(Counter(outcome["reason"].drop_nulls().to_list())) if options.enabled else {}
    fell_back = sum(reasons.values())
    status: StageStatus = "completed" if not fell_back else "partial" if done else "fallback"
    allowance = options.allowance
    cut_short = pl.col("reranked") & (pl.col("reached_depth") < pl.col("requested_depth"))
    parts = [part for part in (scored.record if scored else None, late.record) if part]
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
        late=late.facts(options.late, outcome.height) if options.late and options.enabled else None,
    )


def _depth_of_all_queries(outcome: pl.DataFrame, scored: _Scored | None, options: RerankOptions) -> int:
    """Return the depth down to which every query's candidates were scored; 0 if a query fell back."""
    if not outcome["reranked"].all():
        return 0
    cut = outcome.filter(pl.col("reached_depth") < pl.col("requested_depth")).height
    return scored.reached if scored and cut else options.depth
