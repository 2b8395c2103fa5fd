"""Mix fused scores and reranker logits to a final order.

    final = (1 - w) * minmax(fused score) + w * minmax(logit)

Both scales are per query: fused scores over all of the query's candidates, logits over the scored pairs. A list of
equal scores becomes 0.5. A candidate that was not scored counts as the smallest logit, 0 on that scale. It stays below
all scored candidates: fused scores fall with the rank, so its final score cannot exceed theirs. Ties go by fused rank,
then by chunk id.

CrossEncoder scores alone make some public test sets worse (ArguAna, BM25 reranked by MiniLM: 0.397 to 0.311). Mixed
scores do not. So the default weight is well below a half.
"""

from __future__ import annotations

import polars as pl

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.frame_schemas import RERANKED, conform


def final_order(candidates: pl.DataFrame, weight: float) -> pl.DataFrame:
    """Rank every query's candidates by the interpolated score, as a ``RERANKED`` frame in the order of ``candidates``.

    ``candidates`` is a ``CANDIDATES`` frame with one more column ``rerank_score`` (Float32): the logit, null where the
    pair was not scored. A query without any keeps its fused order and scores. ``weight`` is the reranker's share ``w``;
    a value outside 0 to 1 is a ``SettingsError``.
    """
    if not 0.0 <= weight <= 1.0:
        raise SettingsError(f"rerank.weight is {weight}; expected a number from 0 to 1")
    fused, logit = pl.col("score").cast(pl.Float64), pl.col("rerank_score").cast(pl.Float64)
    mixed = (1.0 - weight) * _minmax(fused) + weight * _minmax(logit).fill_null(0.0)
    scored = candidates.with_row_index("_at").with_columns(
        pl.col("_at").min().over("public_id").alias("_query"),
        pl.col("rerank_score").is_not_null().alias("reranked"),
        pl.when(logit.is_not_null().any().over("public_id")).then(mixed).otherwise(fused).alias("_final"),
    )
    # an unscored query's order is its fused rank, whatever its scores say
    by_score = pl.when(pl.col("reranked")).then(-pl.col("_final"))
    ordered = scored.sort(
        pl.col("_query"), ~pl.col("reranked"), by_score, pl.col("rank"), pl.col("chunk_id"), maintain_order=True
    )
    final = ordered.select(
        "public_id",
        (pl.int_range(pl.len()).over("public_id") + 1).cast(pl.UInt32).alias("rank"),
        "row",
        "chunk_id",
        pl.col("_final").cast(pl.Float32).alias("score"),
        pl.col("rank").alias("fused_rank"),
        pl.col("score").alias("fused_score"),
        "rerank_score",
        "reranked",
    )
    return conform(final, RERANKED, "reranked candidates")


def _minmax(scores: pl.Expr) -> pl.Expr:
    """Scale every query's scores to 0..1; to 0.5 where they are all equal. Null stays null."""
    low, high = scores.min().over("public_id"), scores.max().over("public_id")
    return pl.when(high > low).then((scores - low) / (high - low)).when(scores.is_not_null()).then(0.5)
