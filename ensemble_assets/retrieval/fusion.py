"""Fuse the ranked lists of one or several searches into one list of candidates per query.

``METHODS`` is the table of fusion methods; each says what one list contributes to a chunk's fused score, which is the
weighted sum of the contributions. Every contribution is at least 0 and grows with the list's own order. A list without
the chunk contributes 0, so a chunk never gains by missing from a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import polars as pl

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.common.frame_schemas import CANDIDATES, RUN, conform
from ensemble_assets.retrieval.ranked_lists import with_chunk_ids

_KEY = ["public_id", "row"]
_QUERY, _BEST = ".query", ".best"  # working columns; the dot keeps them apart from "<list name>_rank"
_SCORE = pl.col("score").cast(pl.Float64)


@dataclass(frozen=True)
class RankedList:
    """One search's ranked lists over all queries.

    ``run`` is a RUN frame, empty when that search is off. A list of weight 0 brings no candidates, only its columns.
    """

    name: str
    run: pl.DataFrame
    weight: float = 1.0


@dataclass(frozen=True)
class FusionMethod:
    """A rule for the contribution of one list to the fused score of its chunks.

    ``contribution`` is an expression over one RUN frame's ``rank`` and ``score``, at least 0. With ``convex``, weights
    are divided by their sum, so that fused scores stay in its range. ``parameters`` are for the manifest.
    """

    name: str
    contribution: pl.Expr
    convex: bool
    parameters: Mapping[str, float]


def rrf(k: float = 60) -> FusionMethod:
    """Fuse by reciprocal ranks, ``1 / (k + rank)`` (Cormack, Clarke, Buettcher, SIGIR 2009). Ignores scores."""
    if not (math.isfinite(k) and k >= 0):
        raise SettingsError(f"fusion: rrf k is {k}; expected a number of at least 0, usually 60")
    return FusionMethod("rrf", 1 / (k + pl.col("rank").cast(pl.Float64)), convex=False, parameters={"k": k})


def minmax() -> FusionMethod:
    """Scale scores to ``(score - min) / (max - min)`` per query and list (Bruch et al., arXiv 2210.11934).

    A list's last chunk gets 0, as a chunk that the list lacks. Where all scores are equal, each gets 1.
    """
    low, high = _SCORE.min().over("public_id"), _SCORE.max().over("public_id")
    contribution = pl.when(high > low).then((_SCORE - low) / (high - low)).otherwise(1.0)
    return FusionMethod("minmax", contribution, convex=True, parameters={})


def dbsf() -> FusionMethod:
    """Fuse by score distribution: ``(score - (mean - 3 std)) / (6 std)``, as Qdrant does it.

    ``std`` is the sample standard deviation; where all scores are equal, each gets 0.5. Scores further than 3 std above
    the mean exceed 1 and are not clipped. Those further below become 0, the contribution of a missing chunk.
    """
    low, high = _SCORE.min().over("public_id"), _SCORE.max().over("public_id")
    mean, std = _SCORE.mean().over("public_id"), _SCORE.std(ddof=1).over("public_id")
    spread = (_SCORE - mean) / (6 * std) + 0.5
    contribution = pl.when(high > low).then(spread.clip(lower_bound=0.0)).otherwise(0.5)
    return FusionMethod("dbsf", contribution, convex=True, parameters={"standard_deviations": 3})


def zscore() -> FusionMethod:
    """Scale scores to ``(score - min) / std`` per query and list: z-scores, shifted to 0 at the list's end.

    ``std`` is the population standard deviation. Without the shift, a chunk that a list lacks would be treated as the
    list's average chunk and beat the lower half of it (pairs of six systems on TREC DL19, 100 deep: mean nDCG@10 0.677
    without the shift, 0.694 with it). Where all scores are equal, each gets 0.
    """
    low, high = _SCORE.min().over("public_id"), _SCORE.max().over("public_id")
    std = _SCORE.std(ddof=0).over("public_id")
    contribution = pl.when(high > low).then((_SCORE - low) / std).otherwise(0.0)
    return FusionMethod("zscore", contribution, convex=True, parameters={})


METHODS: Mapping[str, Callable[[], FusionMethod]] = MappingProxyType(
    {"rrf": rrf, "minmax": minmax, "dbsf": dbsf, "zscore": zscore}
)
"""Makers of the fusion methods by name."""


def fuse(
    lists: Sequence[RankedList],
    chunk_ids: pl.Series,
    method: FusionMethod,
    *,
    depth: int | None = None,
    query_order: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Fuse lists to the candidates of every query: fused score descending, then best single rank, then chunk id.

    Args:
        lists: at least one; names differ. The order does not matter.
        chunk_ids: ``[n_chunks] String`` in collection order.
        method: from ``METHODS``.
        depth: candidates per query in the result; all when None.
        query_order: public ids in the order of the result; by default the order of the lists, taken by name.

    Returns:
        CANDIDATES, plus ``<name>_rank`` and ``<name>_score`` for lists that are not in the table of lists. The columns
        of a list of the table are null where it was not given. Scores are compared as stored, in float32.

    Raises:
        ArtefactError: if a list is no sound RUN frame, or names a row or query outside the collection.
        SettingsError: if names, weights or ``depth`` cannot be used.
    """
    lists = sorted(lists, key=lambda each: each.name)
    shares = _shares(lists, method)
    if depth is not None and depth < 1:
        raise SettingsError(f"fusion: depth is {depth}; expected at least 1")
    contributions = [_contributions(each, share, method) for each, share in zip(lists, shares, strict=True)]
    order = _query_numbers(contributions, query_order)
    keys = [frame.select(_KEY) for frame, share in zip(contributions, shares, strict=True) if share > 0]
    fused = pl.concat(keys).unique().join(order, on="public_id", how="left")
    unknown = fused.filter(pl.col(_QUERY).is_null())["public_id"].n_unique()
    if unknown:
        raise ArtefactError(
            f"ranked lists hold {unknown} queries that are not among the queries. "
            "Materialise queries and searches of the same input"
        )
    for contribution in contributions:
        fused = fused.join(contribution, on=_KEY, how="left")
    ranked = _ranked(with_chunk_ids(fused, chunk_ids), [each.name for each in lists if each.weight > 0])
    if depth is not None:
        ranked = ranked.filter(pl.col("rank") <= depth)
    return _candidates(ranked, [each.name for each in lists])


def _ranked(fused: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Add fused ``score`` and ``rank``, and sort as the result; ``names`` are the lists of positive weight."""
    scored = fused.with_columns(
        pl.sum_horizontal([pl.col(_part(name)).fill_null(0.0) for name in names]).cast(pl.Float32).alias("score"),
        pl.min_horizontal([f"{name}_rank" for name in names]).alias(_BEST),
    )
    ordered = scored.sort(_QUERY, "score", _BEST, "chunk_id", descending=[False, True, False, False])
    return ordered.with_columns((pl.int_range(pl.len(), dtype=pl.UInt32).over(_QUERY) + 1).alias("rank"))


def _part(name: str) -> str:
    return f".part.{name}"


def _shares(lists: Sequence[RankedList], method: FusionMethod) -> list[float]:
    """Check names and weights, and divide the weights by their sum if the method is convex."""
    names = [each.name for each in lists]
    if not names or len(set(names)) != len(names) or not all(names):
        raise SettingsError(f"fusion: lists are called {names}; expected at least one, each with its own name")
    weights = [each.weight for each in lists]
    total = sum(weights)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not total > 0:
        stated = ", ".join(f"{each.name}={each.weight}" for each in lists)
        raise SettingsError(f"fusion: weights are {stated}; expected numbers of at least 0, one of them positive")
    return [weight / total for weight in weights] if method.convex else weights


def _contributions(ranked: RankedList, share: float, method: FusionMethod) -> pl.DataFrame:
    """Check one list, and give it as ``public_id, row, <name>_rank, <name>_score`` and its weighted contribution."""
    run = conform(ranked.run, RUN, f"the {ranked.name} list")
    problems = {
        "an empty cell": sum(run.null_count().row(0)) > 0,
        "a score that is not finite": not run["score"].is_finite().all(),
        "a rank of 0": bool((run["rank"] == 0).any()),
        "a chunk twice for one query": bool(run.select(_KEY).is_duplicated().any()),
    }
    wrong = [problem for problem, present in problems.items() if present]
    if wrong:
        raise ArtefactError(f"the {ranked.name} list has {' and '.join(wrong)}. Materialise that search again")
    return run.select(
        *_KEY,
        pl.col("rank").alias(f"{ranked.name}_rank"),
        pl.col("score").alias(f"{ranked.name}_score"),
        (share * method.contribution).alias(_part(ranked.name)),
    )


def _query_numbers(contributions: Sequence[pl.DataFrame], query_order: Sequence[str] | None) -> pl.DataFrame:
    """Number the queries in the order of the result."""
    if query_order is None:
        ids = pl.concat([frame["public_id"] for frame in contributions]).unique(maintain_order=True)
    else:
        ids = pl.Series("public_id", query_order, dtype=pl.String)
        if ids.is_duplicated().any():
            raise ArtefactError("a query id occurs twice in the queries. Materialise the queries again")
    return pl.DataFrame({"public_id": ids}).with_row_index(_QUERY)


def _candidates(fused: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Select the columns of CANDIDATES, absent lists as nulls, then the columns of further lists."""
    absent = [
        pl.lit(None, dtype=dtype).alias(column) for column, dtype in CANDIDATES.items() if column not in fused.columns
    ]
    further = [f"{name}_{what}" for name in names for what in ("rank", "score") if f"{name}_{what}" not in CANDIDATES]
    fused = fused.with_columns(absent)
    return conform(fused, CANDIDATES, "the fused candidates").hstack(fused.select(further))
