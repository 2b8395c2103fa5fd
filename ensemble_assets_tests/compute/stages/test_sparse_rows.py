"""CSR assembly and sources agree with doing it row by row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.stages import sparse_rows
from ensemble_assets.compute.stages.sparse_fallback import PrunedOutputs, fill_missing
from ensemble_assets.compute.stages.sparse_rows import SparseRow, build_matrix, positive_entries

WIDTH = 12
VECTOR = st.dictionaries(st.integers(0, WIDTH - 1), st.floats(0.125, 4.0, width=32), max_size=6)


def outputs_of(vectors: list[dict[int, float]], places: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Pruned outputs as a forward gives them: by falling weight, unused places -1."""
    index = np.full((len(vectors), places), -1, np.int32)
    weight = np.zeros((len(vectors), places), np.float32)
    for row, vector in enumerate(vectors):
        for place, (term, value) in enumerate(sorted(vector.items(), key=lambda item: -item[1])):
            index[row, place], weight[row, place] = term, value
    return index, weight


def as_row(vector: dict[int, float]) -> SparseRow:
    terms = sorted(vector)
    return SparseRow(np.array(terms, np.int32), np.array([vector[term] for term in terms], np.float32))


def as_dicts(matrix) -> list[dict[int, float]]:
    rows = [matrix.row(number) for number in range(len(matrix))]
    assert all((np.diff(row.indices) > 0).all() for row in rows)
    return [dict(zip(row.indices.tolist(), row.values.tolist(), strict=True)) for row in rows]


@given(vectors=st.lists(VECTOR, max_size=8), instead=st.dictionaries(st.integers(0, 7), VECTOR, max_size=4))
def test_csr_rows_are_the_forwards_rows_or_their_replacements(vectors, instead):
    instead = {row: vector for row, vector in instead.items() if row < len(vectors)}
    matrix = build_matrix(*outputs_of(vectors), {row: as_row(vector) for row, vector in instead.items()})
    assert as_dicts(matrix) == [instead.get(row, vector) for row, vector in enumerate(vectors)]
    assert (matrix.indptr.dtype, matrix.indices.dtype, matrix.values.dtype) == (np.int64, np.int32, np.float32)
    expected = [np.sqrt(sum(value**2 for value in vector.values())) for vector in as_dicts(matrix) if vector]
    np.testing.assert_allclose(matrix.norms(), expected, rtol=1e-6)


def test_slices_of_rows_do_not_show(monkeypatch):
    vectors = [{row: 1.0, row + 1: 2.0} for row in range(7)]
    whole = build_matrix(*outputs_of(vectors), {5: as_row({0: 3.0})})
    monkeypatch.setattr(sparse_rows, "_ROWS_AT_ONCE", 2)
    assert as_dicts(build_matrix(*outputs_of(vectors), {5: as_row({0: 3.0})})) == as_dicts(whole)


def test_a_dense_row_gives_its_positive_entries():
    row = positive_entries(np.array([0.0, 2.0, 0.0, 0.5], np.float32))
    assert (row.indices.tolist(), row.values.tolist()) == ([1, 3], [2.0, 0.5])


@given(
    vectors=st.lists(VECTOR, max_size=8),
    failed=st.sets(st.integers(0, 7)),
    stand_ins=st.lists(VECTOR, min_size=8, max_size=8),
)
def test_every_row_is_live_or_stands_in_or_has_none_and_says_so(vectors, failed, stand_ins):
    failed = {row: "ValueError" for row in failed if row < len(vectors)}
    seen = []

    def give(rows, live):
        seen.append((list(rows), as_dicts(live)))
        return [as_row(stand_ins[row]) for row in rows]

    made = fill_missing(PrunedOutputs(*outputs_of(vectors), failed, {}), give)
    missing = sorted(row for row, vector in enumerate(vectors) if row in failed or not vector)
    assert seen == ([(missing, [{} if row in failed else v for row, v in enumerate(vectors)])] if missing else [])
    expected = [stand_ins[row] if row in missing else vector for row, vector in enumerate(vectors)]
    assert as_dicts(made.matrix) == expected
    assert made.source.tolist() == [
        0 if not vector else 2 if row in missing else 1 for row, vector in enumerate(expected)
    ]
    assert made.reasons.get("ValueError", 0) == len(failed)
    assert made.reasons.get("empty_output", 0) == len(set(missing) - failed.keys())


def test_a_pruned_row_is_replaced_by_its_full_one():
    index, weight = outputs_of([{1: 1.0}])
    made = fill_missing(PrunedOutputs(index, weight, {}, {0: as_row({1: 1.0, 2: 0.5})}), lambda rows, live: [])
    assert (as_dicts(made.matrix), made.source.tolist()) == ([{1: 1.0, 2: 0.5}], [1])
