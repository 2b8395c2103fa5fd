"""Mix fused scores with a reranker's logits and the scores of late interaction to a final order.

    final = w * minmax(logit) + (1 - w) * (l * minmax(late score) + (1 - l) * minmax(fused score))

So l is late interaction's share of the part that the reranker leaves, and any two shares go together. A query without
logits has w = 0, and one without late scores l = 0. The scales are per query: fused scores over all of
the query's candidates, the others over the scored pairs. A list of equal scores becomes 0.5. A candidate that was not
scored counts as the smallest, 0 on that scale. Without any score it stays below all scored candidates: fused scores
fall with the rank, so its final score cannot exceed theirs. Ties go by fused rank, then by chunk id.

CrossEncoder scores alone make some public test sets worse (ArguAna, BM25 reranked by MiniLM: 0.397 to 0.311). Mixed
scores do not. So the default weight is well below a half.
"""

from __future__ import annotations

import polars as pl

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.frame_schemas import RERANKED, conform


def final_order(candidates: pl.DataFrame, weight: float, late_share: float = 0.0) -> pl.DataFrame:
    """Rank every query's candidates by the interpolated score, as a ``RERANKED`` frame in the order of ``candidates``.

    ``candidates`` is a ``CANDIDATES`` frame with one more column ``rerank_score`` (Float32): the logit, null where the
    pair was not scored; and maybe ``late_score``, of the same kind. A query without any keeps its fused order and
    scores. ``weight`` is the reranker's share ``w`` and ``late_share`` the share ``l`` of late interaction. Raises
    ``SettingsError`` for a share outside 0 to 1.
    """
    for option, share in (("weight", weight), ("late_weight", late_share)):
        if not 0.0 <= share <= 1.0:
            raise SettingsError(f"rerank.{option} is {share}; expected a number from 0 to 1")
    if "late_score" not in candidates.columns:
        candidates = candidates.with_columns(pl.lit(None, pl.Float32).alias("late_score"))
    fused = pl.col("score").cast(pl.Float64)
    mixed, rest = pl.lit(0.0), pl.lit(1.0)
    for name, share in (("rerank_score", weight), ("late_score", late_share)):
        scores = pl.col(name).cast(pl.Float64)
        own = rest * pl.when(scores.is_not_null().any().over("public_id")).then(share).otherwise(0.0)
        mixed, rest = mixed + own * _minmax(scores).fill_null(0.0), rest - own
    is_scored = pl.col("rerank_score").is_not_null() | pl.col("late_score").is_not_null()
    scored = candidates.with_row_index("_at").with_columns(
        pl.col("_at").min().over("public_id").alias("_query"),
        is_scored.alias("reranked"),
        pl.when(is_scored.any().over("public_id")).then(rest * _minmax(fused) + mixed).otherwise(fused).alias("_final"),
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
        "late_score",
        "reranked",
    )
    return conform(final, RERANKED, "reranked candidates")


def _minmax(scores: pl.Expr) -> pl.Expr:
    """Scale every query's scores to 0..1; to 0.5 where they are all equal. Null stays null."""
    low, high = scores.min().over("public_id"), scores.max().over("public_id")
    return pl.when(high > low).then((scores - low) / (high - low)).when(scores.is_not_null()).then(0.5)
