"""Packed keys and the running selection, against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensemble_assets.common.errors import StageError
from ensemble_assets.retrieval.topk import NO_ROW, BestSoFar, check_depth, pack, unpack

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=finite), st.randoms(use_true_random=False))
def test_ascending_keys_are_descending_scores_then_ascending_rows(scores, random):
    rows = np.array(random.sample(range(1000), len(scores)), dtype=np.int64)
    by_key = np.argsort(pack(scores, rows), kind="stable")
    expected = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), int(rows[i])))
    assert by_key.tolist() == expected


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=finite))
def test_unpack_gives_back_what_was_packed(scores):
    rows = np.arange(len(scores)) + 2**32 - 2 - len(scores)
    unpacked_scores, unpacked_rows = unpack(pack(scores, rows))
    np.testing.assert_array_equal(unpacked_scores, scores)  # -0.0 comes back as 0.0, which is equal
    np.testing.assert_array_equal(unpacked_rows, rows)


def test_minus_zero_ties_with_zero():
    keys = pack(np.array([0.0, -0.0], dtype=np.float32), np.array([7, 3]))
    assert keys[1] < keys[0]


@given(st.integers(1, 4), st.integers(1, 6), st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=60))
def test_what_is_kept_does_not_depend_on_how_it_was_offered(n_queries, k, offers):
    offers = [(query % n_queries, score, row) for row, (query, score) in enumerate(offers)]
    together, one_by_one = BestSoFar(n_queries, k), BestSoFar(n_queries, k)
    queries, scores, rows = (
        (np.array(column, dtype=np.int64) for column in zip(*sorted(offers), strict=True))
        if (offers)
        else (np.zeros(0, np.int64),) * 3
    )
    together.offer(queries, scores.astype(np.float32), rows)
    for query, score, row in reversed(offers):
        one_by_one.offer_one(query, np.array([score], dtype=np.float32), np.array([row]))
    for best in (together, one_by_one):
        result = best.result()
        for query in range(n_queries):
            expected = sorted((-score, row) for q, score, row in offers if q == query)[:k]
            filled = result.filled[query]
            assert filled == len(expected)
            assert [
                (-s, r) for s, r in zip(result.scores[query, :filled], result.rows[query, :filled], strict=True)
            ] == (expected)
            assert (result.rows[query, filled:] == NO_ROW).all()
            assert np.isneginf(result.scores[query, filled:]).all()
            assert best.floors(query, query + 1)[0] == (-expected[-1][0] if filled == k else -np.inf)


def test_a_depth_below_one_is_refused():
    with pytest.raises(StageError, match="0 rows per query; expected at least 1"):
        check_depth(0, 10)


def test_more_rows_than_row_numbers_are_refused():
    with pytest.raises(StageError, match="Split the collection"):
        check_depth(1, 2**32 - 1)
