"""The numbers of a bundle's ranked lists: scores, and how far reranking moved candidates. Ids are not looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

RankedList = Mapping[str, list[float | None]]


def plain_number(value: object) -> float | None:
    """``value`` if it is a finite number of ordinary size, else None."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if good and isinstance(value, (int, float)) else None


def ranked_lists(bundle: Path) -> Iterator[RankedList]:
    """The numbers of ``<prefix>_rerank.jsonl``, a query at a time; lines that are not of its form are left out."""
    for path in sorted(bundle.glob("*_rerank.jsonl"))[:1]:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    names = ("ranks", "fused_ranks", "fused_scores", "rerank_scores")
                    yield {name: _column(record.get(name)) for name in names}


def _column(values: object) -> list[float | None]:
    return [plain_number(value) for value in values] if isinstance(values, list) else []


def rank_moves(lists: RankedList) -> list[float]:
    """Fused rank minus final rank of every candidate that the reranker scored."""
    rows = zip(lists["ranks"], lists["fused_ranks"], lists["rerank_scores"], strict=False)
    return [
        fused - final for final, fused, score in rows if final is not None and fused is not None and score is not None
    ]


def top_changed(lists: RankedList) -> bool:
    """Whether the first candidate is another one than before."""
    return any(final == 1 and fused != 1 for final, fused in zip(lists["ranks"], lists["fused_ranks"], strict=False))


def score_lists(ranked: Sequence[RankedList], candidates: pl.DataFrame | None) -> dict[str, NDArray[np.float64]]:
    """Finite scores per list (dense, sparse, fused, rerank), ``[n] float64``; lists without scores are left out."""
    columns = {"dense": "dense_score", "sparse": "sparse_score", "fused": "score"}
    found: dict[str, list[float | None]] = {}
    if candidates is not None:
        found = {name: candidates[column].to_list() for name, column in columns.items() if column in candidates.columns}
    for name, column in (("fused", "fused_scores"), ("rerank", "rerank_scores")):
        found.setdefault(name, [score for lists in ranked for score in lists[column]])
    finite = {name: [v for v in values if v is not None and math.isfinite(v)] for name, values in found.items()}
    return {name: np.array(values, np.float64) for name, values in finite.items() if values}
