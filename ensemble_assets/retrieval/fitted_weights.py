"""Fit fusion weights on training judgements by trying a grid of convex weights, and keep them in a small text file.

Never pass the judgements that quality is then reported on: the chosen weights would look better than they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import polars as pl

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.errors import ArtefactError, InputError, SettingsError
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.fusion import FusionMethod, RankedList, fuse

MEASURE = "nDCG@10"
_DEPTH = 10  # the measure reads no further
_VERSION = 1  # of the file; another version is refused


@dataclass(frozen=True)
class WeightFit:
    """The chosen weights, and the quality at each grid point.

    Attributes:
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
    """Find the convex weights with the highest nDCG@10 on the training judgements (QRELS).

    All weights that are multiples of ``1 / steps`` and sum to 1 are tried. Of equally good ones the nearest to equal
    weights is chosen, then the one with more weight on the list whose name comes first. Deterministic.

    Fewer than two lists, or no steps, are a ``SettingsError``; no relevant training judgement is an ``ArtefactError``.
    """
    lists = sorted(lists, key=lambda each: each.name)
    if len(lists) < 2 or steps < 1:
        raise SettingsError(
            f"weights were to be fitted for {len(lists)} lists in {steps} steps; expected at least 2 lists and 1 step"
        )
    judged = pl.col("public_id").is_in(training_qrels["public_id"].unique().implode())
    lists = [replace(each, run=each.run.filter(judged)) for each in lists]
    counts = (counts for counts in product(range(steps + 1), repeat=len(lists)) if sum(counts) == steps)
    points = [tuple(count / steps for count in point) for point in counts]
    qualities = [_quality(lists, point, chunk_ids, training_qrels, method) for point in points]
    equal = (1 / len(lists),) * len(lists)
    # Rounded, so that mirror images tie.
    distances = [round(sum((weight - equal[0]) ** 2 for weight in point), 12) for point in points]
    best = min(range(len(points)), key=lambda i: (-qualities[i], distances[i], [-weight for weight in points[i]]))
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
    """Measure mean nDCG@10 of the lists fused with these weights."""
    weighted = [replace(each, weight=weight) for each, weight in zip(lists, weights, strict=True)]
    evaluation = evaluate({"fused": fuse(weighted, chunk_ids, method, depth=_DEPTH)}, qrels)
    if not evaluation.queries:
        raise ArtefactError("no training query has a relevant judgement; weights cannot be fitted. Pass training qrels")
    return evaluation.means(MEASURE)["fused"]


def fit_share(order: Callable[[float], pl.DataFrame], training_qrels: pl.DataFrame, *, steps: int = 20) -> float:
    """Find the reranker's share with the highest nDCG@10 on the training judgements (QRELS).

    ``order`` makes the final lists of a share. All multiples of ``1 / steps`` are tried; of equally good ones the
    smallest is chosen.
    """

    def quality(share: float) -> float:
        return evaluate({"final": order(share).filter(pl.col("rank") <= _DEPTH)}, training_qrels).means(MEASURE)[
            "final"
        ]

    return max((step / steps for step in range(steps + 1)), key=lambda share: (quality(share), -share))


@dataclass(frozen=True)
class FusionWeights:
    """Fitted weights of the lists and of the reranker, and the judgements that they were fitted on.

    Attributes:
        collection: has the training judgements; only its runs use the weights.
        dense_weight: weight of the dense list against the sparse one, 0 to 1.
        lexical_share: weight of the BM25 list, 0 to 1; the other two divide the rest.
        quality: nDCG@10 of these weights on the training judgements (optimistic: chosen on them).
        equal_quality: nDCG@10 of equal weights on the training judgements.
        training_qrels_sha256: hash of the file of training judgements.
        reranker: model that reranked the run; empty where nothing was reranked, or in a file of an earlier version.
        rerank_share: share of that reranker in the final score, 0 to 1.
    """

    collection: str
    method: str
    dense_weight: float
    lexical_share: float
    quality: float
    equal_quality: float
    training_queries: int
    training_qrels_sha256: str
    reranker: str = ""
    rerank_share: float = 0.0

    @property
    def shares(self) -> tuple[float, float, float]:
        """All three, each between 0 and 1."""
        return self.dense_weight, self.lexical_share, self.rerank_share


def write_weights(path: Path, weights: FusionWeights) -> None:
    """Write the file, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json.dumps({"version": _VERSION, **asdict(weights)}, indent=1) + "\n").encode())


def require_weights_file(path: Path) -> None:
    """Refuse a path that is no file with a ``SettingsError``."""
    if not path.is_file():
        raise SettingsError(f"fusion.weights_file: {path} is not a file. Make one with: ensemble-assets fit-fusion")


def read_weights(path: Path, collection: str) -> FusionWeights:
    """Read the weights that ``fit-fusion`` wrote for this collection.

    A missing file, or one of another collection, is a ``SettingsError``; any other content is an ``InputError``.
    """
    require_weights_file(path)
    try:
        content = json.loads(path.read_bytes())
        if content.pop("version") != _VERSION:
            raise ValueError
        weights = FusionWeights(**content)
        if not all(0.0 <= float(weight) <= 1.0 for weight in weights.shares):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            path.name, "is not a file of fitted fusion weights", "Make one with: ensemble-assets fit-fusion"
        ) from None
    if weights.collection != collection:
        raise SettingsError(
            f"fusion.weights_file: {path.name} was fitted on collection {weights.collection}, not {collection}. "
            "Fit weights for this collection, or leave the option empty"
        )
    return weights
