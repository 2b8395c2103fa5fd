"""Lists hold the positive and no held-out passage, negatives that are none are marked, every query gets its turn."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.training.pairs import MinedQueries, draw, mine, schedule
from ensemble_assets.training.recipe import Recipe

TOY = Recipe(
    name="toy",
    body="",
    layers=1,
    hidden_size=1,
    passages_per_query=5,
    hard_passages=2,
    hard_depth=4,
    mid_passages=1,
    pool_depth=10,
    queries_per_step=3,
    label_rank_limit=6,
    false_negative_margin=0.1,
)


def mined(seed: int, queries: int, passages: int, held: frozenset[int]) -> tuple[MinedQueries, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = (rng.permutation(queries * passages).reshape(queries, passages) / (queries * passages)).astype(np.float32)
    free = [row for row in range(passages) if row not in held]
    relevant = [
        frozenset(int(row) for row in rng.permutation(free)[:count]) for count in rng.integers(0, 3, size=queries)
    ]
    rows = np.arange(queries, dtype=np.int32)
    return mine(0, rows, scores, relevant, held, TOY), scores


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(3, 30), st.integers(0, 2))
def test_a_drawn_list_is_what_it_says(seed: int, queries: int, passages: int, held_count: int) -> None:
    held = frozenset(range(held_count))
    part, scores = mined(seed, queries, passages, held)
    for query in range(queries):
        one = draw(part, query, TOY, np.random.default_rng(seed))
        chosen = one.passages.tolist()
        free = [row for row in range(passages) if row not in held]
        by_score = sorted(free, key=lambda row: -scores[query, row])
        relevant = part.relevant[query]
        assert len(set(chosen)) == len(chosen) == min(TOY.passages_per_query, len(free))
        assert not held & set(chosen)
        positive = max(relevant, key=lambda row: scores[query, row]) if relevant else by_score[0]
        assert chosen[0] == positive
        assert np.allclose(one.scores, scores[query, chosen], atol=1e-3)
        assert one.relevant.tolist() == [row in relevant for row in chosen]
        limit = min(TOY.label_rank_limit, len(free))
        assert one.labelled == (bool(relevant) and positive in by_score[:limit])
        if len(free) >= TOY.pool_depth:
            hard = set(by_score[: TOY.hard_depth])
            assert len(hard & set(chosen)) >= TOY.hard_passages


@given(st.integers(0, 2**32 - 1))
def test_no_labelled_passage_is_a_negative_and_likely_positives_are_excluded(seed: int) -> None:
    part, scores = mined(seed, 3, 20, frozenset())
    for query in range(3):
        one = draw(part, query, TOY, np.random.default_rng(seed))
        assert not (one.excluded & one.relevant).any()
        if part.relevant[query]:
            positive = max(scores[query, row] for row in part.relevant[query])
            for row, excluded in zip(one.passages, one.excluded, strict=True):
                margin = scores[query, row] - positive - TOY.false_negative_margin
                if row not in part.relevant[query] and abs(margin) > 1e-3:
                    assert excluded == (margin > 0)


def test_a_query_whose_positive_ranks_too_low_gives_no_label_loss() -> None:
    scores = np.linspace(1, 0, 20, dtype=np.float32)[None]
    low, high = (mine(0, np.array([0], dtype=np.int32), scores, [frozenset({row})], frozenset(), TOY) for row in (6, 5))
    assert not draw(low, 0, TOY, np.random.default_rng(0)).labelled
    assert draw(high, 0, TOY, np.random.default_rng(0)).labelled


@given(st.integers(0, 99), st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_each_pass_takes_every_query_once(seed: int, sizes: list[int]) -> None:
    parts = [mined(1, size, 4, frozenset())[0] for size in sizes]
    total = sum(sizes)
    recipe = dataclasses.replace(TOY, queries_per_step=1)
    everything = {(part, query) for part, size in enumerate(sizes) for query in range(size)}
    for start in (0, total):
        taken = [schedule(parts, recipe, seed, step)[0] for step in range(start, start + total)]
        assert len(taken) == total
        assert set(taken) == everything


def test_a_step_is_a_function_of_seed_and_number() -> None:
    parts = [mined(1, 50, 4, frozenset())[0]]
    forwards = [schedule(parts, TOY, 3, step) for step in range(40)]
    backwards = [schedule(parts, TOY, 3, step) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [schedule(parts, TOY, 4, step) for step in range(40)]
