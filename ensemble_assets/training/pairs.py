"""Which passages a query meets in training: mined candidates, drawn lists, and what counts as a negative.

Scores come from ``teacher``, texts from ``collections``; the loop that feeds a student is ``reranker``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.training.recipe import Recipe

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class MinedQueries:
    """The queries of one collection with the passages that the teacher ranks first.

    Attributes:
        collection: index of the collection whose passages the rows below number.
        query_rows: ``[n] int32``, rows in the table of all query tokens.
        ranked: ``[n, pool] int32``, passage rows by falling teacher score.
        ranked_scores: ``[n, pool] float32``, their scores in [0, 1].
        positive: ``[n] int32``, the labelled passage with the highest score; -1 where there is no label.
        positive_scores: ``[n] float32``, its score; 0 where there is no label.
        relevant: per query, all labelled passages.
        others: passages that random ones are drawn from (all that are not held out).
        scores: ``[n, passages] float16``, the whole score table, for passages outside of the pool.
    """

    collection: int
    query_rows: Ints
    ranked: Ints
    ranked_scores: Floats
    positive: Ints
    positive_scores: Floats
    relevant: Sequence[frozenset[int]]
    others: Ints
    scores: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.query_rows)


@dataclass(frozen=True)
class DrawnList:
    """One training list.

    Attributes:
        passages: ``[passages_per_query] int32``, all different.
        scores: ``[passages_per_query] float32``, the teacher's, in [0, 1].
        relevant: ``[passages_per_query] bool``.
        excluded: ``[passages_per_query] bool``, probably relevant without a label.
        labelled: whether the labels may be used.
    """

    passages: Ints
    scores: Floats
    relevant: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    labelled: bool


def mine(
    collection: int,
    query_rows: Ints,
    scores: Floats,
    relevant: Sequence[frozenset[int]],
    held_out: frozenset[int],
    recipe: Recipe,
) -> MinedQueries:
    """Rank the passages that are not held out for each query, and find the positive.

    Args:
        collection: index of the collection.
        query_rows: ``[n] int32``.
        scores: ``[n, passages] float32``, the teacher's.
        relevant: labelled passages per query; empty sets for queries without labels.
        held_out: passages that no training list may contain.
        recipe: for the depth of the pool.
    """
    others = np.array([row for row in range(scores.shape[1]) if row not in held_out], dtype=np.int32)
    allowed = scores[:, others]
    depth = min(recipe.pool_depth, len(others))
    order = np.argsort(-allowed, axis=1, kind="stable")[:, :depth]
    positive = np.array([_best(row, labels) for row, labels in zip(scores, relevant, strict=True)], dtype=np.int32)
    known = np.where(positive >= 0, scores[np.arange(len(scores)), positive], 0.0)
    return MinedQueries(
        collection=collection,
        query_rows=query_rows,
        ranked=others[order],
        ranked_scores=np.take_along_axis(allowed, order, axis=1),
        positive=positive,
        positive_scores=known.astype(np.float32),
        relevant=relevant,
        others=others,
        scores=scores.astype(np.float16),
    )


def _best(scores: Floats, labels: frozenset[int]) -> int:
    return max(sorted(labels), key=lambda row: float(scores[row]), default=-1)


def draw(mined: MinedQueries, index: int, recipe: Recipe, rng: np.random.Generator) -> DrawnList:
    """A list for one query: its positive (without labels: the teacher's first), then hard, middling, random passages.

    Hard ones come from the first ``hard_depth`` ranks, middling ones from the rest of the pool. Collections too small
    for that are filled up with what they have; all passages of a list differ.
    """
    pool = mined.ranked[index]
    first = int(mined.positive[index]) if mined.positive[index] >= 0 else int(pool[0])
    hard = rng.permutation(pool[: recipe.hard_depth])
    middling = rng.permutation(pool[recipe.hard_depth :])
    anything = rng.choice(mined.others, size=min(4 * recipe.passages_per_query, len(mined.others)), replace=False)
    chosen = [first]
    for source, count in (
        (hard, recipe.hard_passages),
        (middling, recipe.mid_passages),
        (np.concatenate([anything, hard, middling]), recipe.passages_per_query),
    ):
        fresh = [int(row) for row in dict.fromkeys(source.tolist()) if row not in chosen]
        chosen += fresh[: min(count, recipe.passages_per_query - len(chosen))]
    return _describe(mined, index, np.array(chosen, dtype=np.int32), recipe)


def _describe(mined: MinedQueries, index: int, passages: Ints, recipe: Recipe) -> DrawnList:
    scores = mined.scores[index, passages].astype(np.float32)
    labels = mined.relevant[index]
    relevant = np.array([int(row) in labels for row in passages], dtype=np.bool_)
    excluded = ~relevant & (scores > mined.positive_scores[index] + recipe.false_negative_margin)
    limit = min(recipe.label_rank_limit, mined.ranked_scores.shape[1]) - 1
    within = bool(mined.positive_scores[index] >= mined.ranked_scores[index, limit])
    return DrawnList(passages, scores, relevant, excluded, bool(labels) and within)


def schedule(mined: Sequence[MinedQueries], recipe: Recipe, seed: int, step: int) -> list[tuple[int, int]]:
    """Which (collection, query) pairs a step trains on: all queries once per pass, in an order drawn per pass.

    A function of seed and step alone, so that a run that was stopped goes on as if it had not been.
    """
    sizes = np.cumsum([0, *(len(part) for part in mined)])
    total = int(sizes[-1])
    picked = []
    for position in range(step * recipe.queries_per_step, (step + 1) * recipe.queries_per_step):
        flat = int(_pass_order(total, seed, position // total)[position % total])
        part = int(np.searchsorted(sizes, flat, side="right")) - 1
        picked.append((part, flat - int(sizes[part])))
    return picked


@lru_cache(maxsize=2)
def _pass_order(total: int, seed: int, number: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, number]).permutation(total)
