"""The rerank stage: a CrossEncoder, or late interaction, over each query's best fused candidates.

All queries' pairs are one work list, ordered by length; what a query gets depends on its own pairs only. Where time is
limited the list is cut into slices by rank, best first, and ``latency_budget`` says after each how deep the next one
goes. A query of which any pair could not be scored keeps its fused order, since half a scored list cannot be ordered
fairly. How scores are mixed is ``interpolation``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.stage_record import StageRecord, StageStatus
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.frame_schemas import CANDIDATES, conform
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.stages.context import ComputeContext, FactoryMaker, reason_of, record_of
from ensemble_assets.compute.stages.held_model import hold, merge_results
from ensemble_assets.compute.stages.rerank_depth import NO_LIMIT, Allowance, PairWork, TimeLimit, score_slices
from ensemble_assets.compute.stages.rerank_scores import final_order
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies, vocabulary
from ensemble_assets.compute.tokens.windows import Windows, failed_texts, largest_logits, take_bodies, windows_of
from ensemble_assets.models.model_config import complete_spec
from ensemble_assets.models.registry import ModelSpec

DEFAULT_DEPTH = 20
FEATURE_DISABLED = "feature_disabled"


@dataclass(frozen=True)
class RerankOptions:
    """What is wanted.

    Attributes:
        enabled: False keeps the fused order, without counting that as a fallback.
        depth: candidates per query that are scored.
        weight: the reranker's share in the final score; None: the model's own.
        allowance: what the stage may take, counted from its call; without a limit every candidate down to ``depth`` is
            scored.
    """

    enabled: bool = True
    depth: int = DEFAULT_DEPTH
    weight: float | None = None
    allowance: Allowance = NO_LIMIT

    def share_of(self, spec: ModelSpec) -> float:
        """The share that a reranker gets."""
        return spec.share if self.weight is None else self.weight


@dataclass(frozen=True)
class RerankResult:
    """What the rerank stage made.

    Attributes:
        reranked: a ``RERANKED`` frame: every candidate of every query.
        queries: one row per query that has candidates: ``public_id``, ``requested_depth`` (UInt32, candidates that were
            to be scored), ``reached_depth`` (UInt32, those that were: its best ones), ``reranked`` (Boolean) and
            ``reason`` (String, why not; null where it was).
        record: the stage's run.
    """

    reranked: pl.DataFrame
    queries: pl.DataFrame
    record: StageRecord


@dataclass(frozen=True)
class _Pairs:
    """What is to be scored: a row of ``head`` each, whose ``_at`` is its place among all candidates."""

    head: pl.DataFrame
    chunks: pl.Series
    queries: pl.DataFrame


@dataclass(frozen=True)
class _Scored:
    """A logit per pair, NaN where there is none; why queries failed; how deep it went; and the run's record."""

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

    Args:
        candidates: a ``CANDIDATES`` frame.
        chunks: all chunk texts; ``row`` of the candidates points into them.
        queries: a frame with ``public_id`` and ``text``.
        spec: the CrossEncoder, or what takes its place.
        context: what to compute with.
        options: switch, depth, weight and time.
        make_factory: how to run the model.
        clock: seconds.

    Raises:
        SettingsError: if depth, floor or weight is out of range.
        ArtefactError: if the candidates are not what they should be.
    """
    if options.depth < 1:
        raise SettingsError(f"rerank.depth is {options.depth}; expected at least 1")
    started = clock()
    candidates = conform(candidates, CANDIDATES, "fused candidates")
    head = candidates.with_row_index("_at").filter(pl.col("rank") <= options.depth)
    reason = "" if options.enabled else FEATURE_DISABLED
    scored: _Scored | None = None
    if options.enabled and head.height:
        try:
            limits = TimeLimit(options.allowance, started, clock)
            scored = _score(_Pairs(head, chunks, queries), spec, context, make_factory, limits)
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001  # the stage boundary: every query keeps its fused order, recorded
            reason = reason_of(error)
    logits = np.full(candidates.height, np.nan, np.float32)
    if scored:
        logits[head["_at"].to_numpy()] = scored.logits
    with_logits = candidates.with_columns(pl.Series("rerank_score", logits, pl.Float32).fill_nan(None))
    outcome = _outcome(with_logits, scored.failed if scored else {}, reason, options.depth)
    record = _record(outcome, scored, options, spec)
    for why, count in record.fallback_reasons.items():
        context.events.emit("fallback.rerank", model=spec.slug, reason=why, source="fused_order", count=count)
    reranked = final_order(with_logits, options.share_of(spec))
    return RerankResult(reranked, outcome, replace(record, seconds=clock() - started))


def _score(
    pairs: _Pairs, spec: ModelSpec, context: ComputeContext, make_factory: FactoryMaker, limits: TimeLimit
) -> _Scored:
    files = context.locate(spec)
    spec = complete_spec(spec, files)
    known = vocabulary(files)
    head = pairs.head
    asked = pairs.queries.join(head.select("public_id").unique(), on="public_id", how="semi", maintain_order="left")
    query_bodies = context.tokens.bodies(asked["text"], known, spec.max_tokens, spec.query_prefix)
    chunk_bodies, chunk_at = _chunk_bodies(head, pairs.chunks, known, spec, context)
    numbers = pl.DataFrame({"public_id": asked["public_id"], "_query": np.arange(asked.height)})
    query_at = head.join(numbers, on="public_id", how="left", maintain_order="left", validate="m:1")["_query"]
    queries = query_at.to_numpy().astype(np.int64)
    windows = _windows(query_bodies.full_lengths[queries], take_bodies(chunk_bodies, chunk_at), known, spec)
    rows = np.stack([queries[windows.texts], np.arange(len(windows))], axis=1)
    ranks = head["rank"].to_numpy()[windows.texts]
    work = PairWork(ranks, rows, query_bodies, windows.bodies, known, spec.max_tokens)
    factory = make_factory(spec, files, context.runtime)
    with hold(context, "rerank", spec, factory) as held:
        slices = score_slices(work, held, limits)
    result = merge_results(slices.results)
    failed = _failed_queries(head, failed_texts(slices.failed, windows))
    done, done_windows = head["rank"].to_numpy() <= slices.reached, work.ranks <= slices.reached
    full = query_bodies.full_lengths[rows[done_windows, 0]] + windows.bodies.full_lengths[done_windows]
    dropped_in_windows = int(full.sum()) + len(full) * known.template.pair_specials - slices.tokens
    record = replace(
        record_of("rerank", "completed", spec, files, factory, result),
        items=int(done.sum()),
        truncated=slices.truncated + int((windows.dropped[done] > 0).sum()),
        tokens_dropped=dropped_in_windows + int(windows.dropped[done].sum()),
    )
    bad = head["public_id"].is_in(list(failed)).to_numpy()
    logits = np.where(bad, np.float32(np.nan), largest_logits(slices.logits, windows))
    return _Scored(logits, failed, slices.reached, record, result.largest_batch)


def _windows(query_tokens: NDArray[np.int64], chunks: TokenBodies, known: Vocabulary, spec: ModelSpec) -> Windows:
    """Windows of every pair's chunk, so long that the pair's query, or its half of a pair, fits beside each.

    With one window it is the whole chunk, and both texts of a pair are cut where they do not fit together. For late
    interaction a chunk is cut alike beside every query, so that it is encoded once for all of them; a query that is
    longer than a quarter of a pair cuts it further.
    """
    room = spec.max_tokens - known.template.pair_specials
    if spec.pooling == "late_interaction":
        return windows_of(chunks, room - min(int(query_tokens.max()), room // 4), spec.windows)
    if spec.windows == 1:
        return Windows(chunks, np.arange(len(chunks)), np.zeros(len(chunks), np.int64))
    return windows_of(chunks, room - np.minimum(query_tokens, room // 2), spec.windows)


def _chunk_bodies(
    head: pl.DataFrame, chunks: pl.Series, known: Vocabulary, spec: ModelSpec, context: ComputeContext
) -> tuple[TokenBodies, NDArray[np.int64]]:
    """Token ids of the candidates' chunks, and where each pair's chunk stands in them.

    All chunks' ids where an encoder with this vocabulary has made them already, else only those that are needed.
    """
    rows = head["row"].to_numpy().astype(np.int64)
    held = context.tokens.held(chunks, known, spec.chunk_tokens, spec.document_prefix)
    if held is not None:
        return held, rows
    distinct, at = np.unique(rows, return_inverse=True)
    bodies = tokenise_bodies(chunks.gather(distinct), known, spec.chunk_tokens, spec.document_prefix)
    return bodies, at.astype(np.int64)


def _failed_queries(head: pl.DataFrame, failed_pairs: dict[int, str]) -> dict[str, str]:
    """Queries with a pair that failed, and why (the reason of their best-ranked such pair)."""
    failed: dict[str, str] = {}
    for pair in sorted(failed_pairs):
        failed.setdefault(head["public_id"][pair], failed_pairs[pair])
    return failed


def _outcome(with_logits: pl.DataFrame, failed: dict[str, str], whole_reason: str, depth: int) -> pl.DataFrame:
    """What became of every query."""
    counted = with_logits.group_by("public_id", maintain_order=True).agg(
        (pl.col("rank") <= depth).sum().cast(pl.UInt32).alias("requested_depth"),
        pl.col("rerank_score").count().cast(pl.UInt32).alias("reached_depth"),
    )
    reason = pl.Series("reason", [failed.get(one, whole_reason) or None for one in counted["public_id"]], pl.String)
    return counted.with_columns(reason.is_null().alias("reranked"), reason)


def _record(outcome: pl.DataFrame, scored: _Scored | None, options: RerankOptions, spec: ModelSpec) -> StageRecord:
    done = int(outcome["reranked"].sum())
    reasons: dict[str, int] = dict(Counter(outcome["reason"].drop_nulls().to_list())) if options.enabled else {}
    fell_back = sum(reasons.values())
    status: StageStatus = "completed" if not fell_back else "partial" if done else "fallback"
    facts: dict[str, int | float | str | bool] = {
        "model": spec.slug,
        "queries": outcome.height,
        "query_count": outcome.height,
        "queries_reranked": done,
        "pairs_scored": int(outcome["reached_depth"].sum()),
        "depth": options.depth,
        "requested_depth": options.depth,
        "reached_depth": _reached_by_all(outcome, scored, options),
        "queries_cut_short": outcome.filter(
            pl.col("reranked") & (pl.col("reached_depth") < pl.col("requested_depth"))
        ).height,
        "weight": options.share_of(spec),
        "largest_batch": scored.largest_batch if scored else 0,
        **_budget_facts(options.allowance),
    }
    if fell_back:
        facts["fallback_source"] = "runtime" if scored else "load"
    return replace(
        scored.record if scored else StageRecord("rerank", status),
        status=status if options.enabled else "feature_disabled",
        fallback_count=fell_back,
        fallback_reasons=reasons,
        facts=facts,
    )


def _reached_by_all(outcome: pl.DataFrame, scored: _Scored | None, options: RerankOptions) -> int:
    """The depth down to which every query's candidates were scored, as far as it has so many; 0 if one fell back."""
    if not outcome["reranked"].all():
        return 0
    cut = outcome.filter(pl.col("reached_depth") < pl.col("requested_depth")).height
    return scored.reached if scored and cut else options.depth


def _budget_facts(allowance: Allowance) -> dict[str, int | float | str | bool]:
    facts: dict[str, int | float | str | bool] = {"budget": allowance.against, "floor_depth": allowance.floor}
    if allowance.seconds is not None:
        facts["budget_seconds"] = round(allowance.seconds, 4)
    if allowance.reason:
        facts["budget_reason"] = allowance.reason
    return facts
