"""What a reranker does to a first stage: pair scores, the pipeline's interpolation at several weights, nDCG@10.

Reading evaluation sets and writing figures is ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from ensemble_assets.common.errors import StageError
from ensemble_assets.common.frame_schemas import CANDIDATES, QRELS, RUN
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.tokens.token_tables import pair_table
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.fusion import METHODS, FusionMethod, RankedList, dbsf, fuse, minmax, rrf, zscore
from ensemble_assets.retrieval.quality_verdicts import bootstrap_interval
from ensemble_assets.settings.options import Fusion
from ensemble_assets.training.preparation import FirstStage
from ensemble_assets.training.tokens import pad, read_vocabulary, tokenise

Floats = NDArray[np.float32]

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
"""Weights of the CrossEncoder that are reported; 0 is the first stage's order, 1 the CrossEncoder's alone."""

RERANK_DEPTH = 20
LIST_DEPTH = 100

_PAIRS_PER_BATCH = 64


@dataclass(frozen=True)
class Candidates:
    """Ranked candidates of judged queries, with the texts to rerank them by.

    Attributes:
        ranked: ``public_id, rank, chunk_id, row, score`` of all first-stage candidates, sorted by query and rank.
        queries: text per public id.
        passages: text per row.
        qrels: QRELS of the same queries.
    """

    ranked: pl.DataFrame
    queries: Mapping[str, str]
    passages: Sequence[str]
    qrels: pl.DataFrame


Scorer = Callable[[Sequence[str], Sequence[str]], Floats]


class PairScorer:
    """A saved CrossEncoder, loaded as anybody would load it, in float32."""

    def __init__(self, folder: Path, max_tokens: int = 256) -> None:
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
        self._vocabulary = read_vocabulary(folder)
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Floats:
        """Logits ``[pairs] float32`` of ``queries[i]`` with ``passages[i]``."""
        query_tokens = tokenise(self._vocabulary, queries, self._max_tokens, self._max_tokens // 2)
        passage_tokens = tokenise(self._vocabulary, passages, self._max_tokens)
        pairs = np.repeat(np.arange(len(queries)), 2).reshape(-1, 2)
        table = pair_table(query_tokens, passage_tokens, pairs, self._vocabulary.template, self._max_tokens)
        uncut = query_tokens.full_lengths + np.minimum(passage_tokens.full_lengths, passage_tokens.cap)
        order = np.argsort(uncut, kind="stable")
        scores = np.empty(len(order), dtype=np.float32)
        for start in range(0, len(order), _PAIRS_PER_BATCH):
            rows = order[start : start + _PAIRS_PER_BATCH]
            batch = pad(table, rows, self._vocabulary)
            output = self._model(input_ids=batch.ids, attention_mask=batch.attention, token_type_ids=batch.segments)
            scores[rows] = output.logits[:, 0].numpy()
        return scores


class StageScorer:
    """A registered reranker as the rerank stage runs it: its lengths, backend and precision."""

    def __init__(self, spec: ModelSpec, runtime: Runtime) -> None:
        self._spec = spec
        self._context = ComputeContext(runtime=runtime)

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Floats:
        """Scores ``[pairs] float32`` of ``queries[i]`` with ``passages[i]``; every pair is given once.

        Raises:
            StageError: if the stage could not score every pair.
        """
        query_at, passage_at = (
            {text: number for number, text in enumerate(dict.fromkeys(texts))} for texts in (queries, passages)
        )
        pairs = pl.DataFrame(
            {
                "public_id": [str(query_at[text]) for text in queries],
                "row": pl.Series([passage_at[text] for text in passages], dtype=pl.UInt32),
            }
        )
        found = rerank_candidates(
            _unranked(pairs),
            pl.Series(list(passage_at), dtype=pl.String),
            pl.DataFrame({"public_id": [str(number) for number in query_at.values()], "text": list(query_at)}),
            self._spec,
            self._context,
            RerankOptions(depth=len(passages)),
        )
        if found.record.status != "completed":
            raise StageError(f"{self._spec.slug}: {dict(found.record.fallback_reasons)}; correct the model")
        scores = pairs.join(found.reranked, on=["public_id", "row"], how="left", maintain_order="left")
        return scores["rerank_score"].to_numpy()


def _unranked(pairs: pl.DataFrame) -> pl.DataFrame:
    """A CANDIDATES frame of pairs whose ranks and scores mean nothing."""
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("public_id")
    known = pairs.with_columns(
        rank.alias("rank"), pl.format("{}", "row").alias("chunk_id"), (-rank.cast(pl.Float32)).alias("score")
    )
    rest = [pl.lit(None, dtype).alias(name) for name, dtype in CANDIDATES.items() if name not in known.columns]
    return known.with_columns(rest).select(list(CANDIDATES)).sort("public_id", "rank")


class Remembering:
    """A scorer that scores a pair once."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Floats:
        """As the scorer, whose turn it is for new pairs only."""
        pairs = list(zip(queries, passages, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if new:
            scores = self._scorer([query for query, _ in new], [passage for _, passage in new])
            self._known.update(zip(new, map(float, scores), strict=True))
        return np.array([self._known[pair] for pair in pairs], dtype=np.float32)


FUSIONS: Mapping[str, tuple[FusionMethod, Mapping[str, float]]] = MappingProxyType(
    {
        "rrf": (rrf(), {"dense": 1.0, "sparse": 1.0}),
        "minmax": (minmax(), {"dense": 0.5, "sparse": 0.5}),
        "dbsf": (dbsf(), {"dense": 0.5, "sparse": 0.5}),
        "zscore": (zscore(), {"dense": 0.5, "sparse": 0.5}),
        "fused": (METHODS[Fusion().method](), {"dense": 0.4, "sparse": 0.4, "lexical": Fusion().lexical_share}),
    }
)
"""Fusions that are measured, by the name of their run: method and weights; ``fused`` is the pipeline's default."""


def first_stage_runs(stage: FirstStage) -> dict[str, pl.DataFrame]:
    """``dense``, ``sparse`` and ``lexical``, 100 deep, and every one of ``FUSIONS``, all with chunk ids."""
    chunk_ids = pl.Series("chunk_id", stage.collection.passage_ids, dtype=pl.String)
    tables = {"dense": stage.dense, "sparse": stage.sparse, "lexical": stage.lexical}
    runs = {name: run_frame(scores) for name, scores in tables.items()}
    # what shares no term with the query was not found
    runs |= {name: runs[name].filter(pl.col("score") > 0) for name in ("sparse", "lexical")}
    named = {name: run.with_columns(chunk_ids.gather(run["row"]).alias("chunk_id")) for name, run in runs.items()}
    return {**named, **{name: fused_run(name, runs, chunk_ids) for name in FUSIONS}}


def fused_run(name: str, runs: Mapping[str, pl.DataFrame], chunk_ids: pl.Series) -> pl.DataFrame:
    """One of ``FUSIONS`` over the RUN frames that it takes."""
    method, weights = FUSIONS[name]
    return fuse([RankedList(one, runs[one], weight) for one, weight in weights.items()], chunk_ids, method)


def run_frame(scores: Floats) -> pl.DataFrame:
    """A RUN frame of the first ``LIST_DEPTH`` columns of every row of a score table; public ids are row numbers."""
    depth = min(LIST_DEPTH, scores.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return pl.DataFrame(
        {
            "public_id": [str(query) for query in range(len(scores)) for _ in range(depth)],
            "rank": np.tile(np.arange(1, depth + 1), len(scores)),
            "row": order.ravel(),
            "score": np.take_along_axis(scores, order, axis=1).ravel(),
        },
        schema=dict(RUN),
    )


def stage_candidates(stage: FirstStage, fused: pl.DataFrame) -> Candidates:
    """The fused list with texts and binary judgements."""
    ids = stage.collection.passage_ids
    judged = [(str(query), ids[one], 1) for query, rows in enumerate(stage.relevant) for one in sorted(rows)]
    return Candidates(
        ranked=fused,
        queries={str(number): text for number, text in enumerate(stage.queries)},
        passages=stage.collection.passages,
        qrels=pl.DataFrame(judged, schema=dict(QRELS), orient="row"),
    )


def with_rerank_scores(candidates: Candidates, scorer: Scorer, depth: int) -> pl.DataFrame:
    """``ranked`` with ``rerank_score``: the CrossEncoder's logit for the first ``depth`` ranks, null below."""
    head = candidates.ranked.filter(pl.col("rank") <= depth)
    scores = scorer(
        [candidates.queries[public_id] for public_id in head["public_id"]],
        [candidates.passages[index] for index in head["row"]],
    )
    scored = head.select("public_id", "row").with_columns(pl.Series("rerank_score", scores))
    return candidates.ranked.join(scored, on=["public_id", "row"], how="left", maintain_order="left")


def measured(
    candidates: Candidates, others: Mapping[str, pl.DataFrame], scorer: Scorer, depth: int, default_weight: float
) -> dict[str, Any]:
    """nDCG@10 of ``others`` and of the reranked list at every weight, and the paired difference at the default one.

    Returns:
        ``queries``, ``depth``, ``nDCG@10`` by run, ``reranked`` by weight, and ``difference`` of reranked to first
        stage with its 95 % bootstrap interval over queries.
    """
    scored = with_rerank_scores(candidates, scorer, depth)
    by_weight = {f"{weight:g}": final_order(scored, weight) for weight in sorted({*WEIGHTS, default_weight})}
    result = evaluate({**others, **by_weight}, candidates.qrels)
    means = {name: float(result.values(name)["value"].mean()) for name in (*others, *by_weight)}  # type: ignore[arg-type]
    difference = result.values(f"{default_weight:g}")["value"].to_numpy() - result.values("0")["value"].to_numpy()
    low, high = bootstrap_interval(difference)
    return {
        "queries": result.queries,
        "depth": depth,
        "nDCG@10": {name: round(means[name], 4) for name in others},
        "reranked": {name: round(means[name], 4) for name in by_weight},
        "difference": {
            "weight": default_weight,
            "mean": round(float(difference.mean()), 4),
            "interval95": [round(low, 4), round(high, 4)],
        },
    }
