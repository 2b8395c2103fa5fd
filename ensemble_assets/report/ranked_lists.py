"""Read the numbers of a bundle's ranked lists: scores, and how far reranking moved candidates. Ids are not read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common import stages
from ensemble_assets.export.read.bundle_reader import records
from ensemble_assets.telemetry.allowed_values import finite_number

_COLUMNS = ("ranks", "fused_ranks", "fused_scores", "rerank_scores")
RankedList = Mapping[str, list[float | None]]


def ranked_lists(bundle: Path) -> Iterator[RankedList]:
    """Read the numbers of ``<prefix>_rerank.jsonl``, a query at a time; lines of another form are left out."""
    for path in sorted(bundle.glob("*_rerank.jsonl"))[:1]:
        for record in filter(None, records(path)):
            columns = {name: record.get(name) for name in _COLUMNS}
            yield {
                name: [finite_number(value) for value in values] if isinstance(values, list) else []
                for name, values in columns.items()
            }


def rank_moves(lists: RankedList) -> list[float]:
    """Subtract the final rank from the fused rank of every candidate that the reranker scored."""
    rows = zip(lists["ranks"], lists["fused_ranks"], lists["rerank_scores"], strict=False)
    return [
        fused - final for final, fused, score in rows if final is not None and fused is not None and score is not None
    ]


def top_changed(lists: RankedList) -> bool:
    """Say whether reranking put another candidate first."""
    return any(final == 1 and fused != 1 for final, fused in zip(lists["ranks"], lists["fused_ranks"], strict=False))


def score_lists(ranked: Sequence[RankedList], candidates: pl.DataFrame | None) -> dict[str, NDArray[np.float64]]:
    """Collect the finite scores of every list, ``[n] float64``; lists without scores are left out."""
    columns = {name: f"{name}_score" for name in stages.first_stage_lists()} | {"fused": "score"}
    scores: dict[str, list[float | None]] = {}
    if candidates is not None:
        scores = {name: candidates[column].to_list() for name, column in columns.items() if column in candidates}
    for name, column in (("fused", "fused_scores"), ("reranked", "rerank_scores")):
        scores.setdefault(name, [score for lists in ranked for score in lists[column]])
    finite = {name: [v for v in values if v is not None and math.isfinite(v)] for name, values in scores.items()}
    return {name: np.array(values, np.float64) for name, values in finite.items() if values}
