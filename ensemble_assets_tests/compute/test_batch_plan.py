"""Every row is planned exactly once, longest first, within the budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.batch_plan import halves, plan_batches
from ensemble_assets.compute.work import Batch


@given(
    lengths=st.lists(st.integers(1, 50), max_size=40),
    budget=st.integers(1, 200),
    most_rows=st.integers(1, 10),
    data=st.data(),
)
def test_batches_cover_every_row_once_within_the_budget(lengths, budget, most_rows, data):
    counts = np.array(lengths, np.int64)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, max(0, len(lengths) - 1))))) if lengths else [], np.int64)
    batches = plan_batches(counts, rows, budget, most_rows)
    assert sorted(int(row) for batch in batches for row in batch.rows) == rows.tolist()
    for batch in batches:
        assert batch.longest == counts[batch.rows].max()
        assert batch.size <= most_rows
        assert batch.tokens <= budget or batch.size == 1
    assert [batch.longest for batch in batches] == sorted((batch.longest for batch in batches), reverse=True)


@given(lengths=st.lists(st.integers(1, 50), min_size=2, max_size=20))
def test_halves_are_the_batch_in_two(lengths):
    counts = np.array(sorted(lengths, reverse=True), np.int64)
    both = halves(Batch(np.arange(len(counts)), int(counts[0])), counts)
    assert [row for half in both for row in half.rows] == list(range(len(counts)))
    assert all(half.longest == counts[half.rows].max() for half in both)
