"""Chooses fusion weights on training judgements by trying a grid of convex weights.

The caller passes training judgements. Never pass the judgements that quality is then reported on: the chosen weights
would look better than they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.fusion import FusionMethod, RankedList, fuse

MEASURE = "nDCG@10"
_DEPTH = 10  # what the measure sees


@dataclass(frozen=True)
class WeightFit:
    """Chosen weights and what each grid point gave.

    Attributes:
        method: fusion method.
        weights: by list name, sum 1.
        quality: nDCG@10 of the chosen weights on the training judgements (optimistic: it was chosen on them).
        equal_quality: nDCG@10 of equal weights, on the grid or not.
        queries: training queries with a relevant judgement.
        grid: one row per grid point: a ``weight_<name>`` column per list and ``nDCG@10``, all Float64.
    """

    method: str
    weights: Mapping[str, float]
    quality: float
    equal_quality: float
    queries: int
    grid: pl.DataFrame


def fit_weights(
    lists: Sequence[RankedList],
    chunk_ids: pl.Series,
    training_qrels: pl.DataFrame,
    method: FusionMethod,
    *,
    steps: int = 20,
) -> WeightFit:
    """The convex weights with the highest nDCG@10 on the training judgements.

    All weights that are multiples of ``1 / steps`` and sum to 1 are tried. Of equally good ones the nearest to equal
    weights is chosen, then the one with more weight on the list whose name comes first. Deterministic.

    Args:
        lists: at least two; their own weights are ignored.
        chunk_ids: ``[n_chunks] String`` in collection order.
        training_qrels: QRELS of training queries.
        method: any of ``fusion.METHODS``.
        steps: divisions of the weight range, at least 1.

    Raises:
        SettingsError: if there are fewer than two lists or no steps.
        ArtefactError: if no training query has a relevant judgement.
    """
    lists = sorted(lists, key=lambda each: each.name)
    if len(lists) < 2 or steps < 1:
        raise SettingsError(
            f"weights were to be fitted for {len(lists)} lists in {steps} steps; expected at least 2 lists and 1 step"
        )
    judged = pl.col("public_id").is_in(training_qrels["public_id"].unique().implode())
    lists = [replace(each, run=each.run.filter(judged)) for each in lists]
    points = [tuple(count / steps for count in counts) for counts in _compositions(steps, len(lists))]
    qualities = [_quality(lists, point, chunk_ids, training_qrels, method) for point in points]
    equal = (1 / len(lists),) * len(lists)
    best = min(range(len(points)), key=lambda i: (-qualities[i], _distance(points[i], equal), [-w for w in points[i]]))
    names = [each.name for each in lists]
    columns = {f"weight_{name}": [point[i] for point in points] for i, name in enumerate(names)}
    return WeightFit(
        method=method.name,
        weights=dict(zip(names, points[best], strict=True)),
        quality=qualities[best],
        equal_quality=_quality(lists, equal, chunk_ids, training_qrels, method),
        queries=training_qrels.filter(pl.col("relevance") > 0)["public_id"].n_unique(),
        grid=pl.DataFrame({**columns, MEASURE: qualities}),
    )


def _quality(
    lists: Sequence[RankedList],
    weights: Sequence[float],
    chunk_ids: pl.Series,
    qrels: pl.DataFrame,
    method: FusionMethod,
) -> float:
    """Mean nDCG@10 of the lists fused with these weights."""
    weighted = [replace(each, weight=weight) for each, weight in zip(lists, weights, strict=True)]
    evaluation = evaluate({"fused": fuse(weighted, chunk_ids, method, depth=_DEPTH)}, qrels)
    if not evaluation.queries:
        raise ArtefactError("no training query has a relevant judgement; weights cannot be fitted. Pass training qrels")
    means = evaluation.summary.filter(pl.col("measure") == MEASURE)["mean"]
    return float(means[0])


def _distance(weights: Sequence[float], equal: Sequence[float]) -> float:
    """Squared distance, rounded so that mirror images tie."""
    return round(sum((weight - even) ** 2 for weight, even in zip(weights, equal, strict=True)), 12)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as an ordered sum of ``parts`` numbers of at least 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
