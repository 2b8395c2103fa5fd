"""The teacher's encodings equal plain references, are kept between runs, and combine as documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training import teacher as teacher_module
from ensemble_assets.training.teacher import SparseRows, Teacher, combine, dense_scores, min_max, sparse_scores

_TEXTS = ["Rennet turns milk into curd.", "ice", "A moraine is debris that a glacier leaves in its valley. " * 8]


@pytest.mark.models
def test_dense_vectors_equal_mean_pooled_states(work: Path) -> None:
    folder = locate(MODELS["all-minilm-l6-v2"]).folder
    batch = AutoTokenizer.from_pretrained(folder)(
        _TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert np.min((Teacher(work).dense(_TEXTS) * expected).sum(axis=1)) > 0.999


@pytest.mark.models
def test_sparse_weights_equal_the_largest_of_the_splade_formula(work: Path) -> None:
    folder = locate(MODELS["splade-tiny"]).folder
    batch = AutoTokenizer.from_pretrained(folder)(
        _TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**batch).logits
    masked = torch.log1p(torch.relu(logits)) * batch["attention_mask"].unsqueeze(-1)
    expected = masked.amax(1).numpy()
    got = Teacher(work).sparse(_TEXTS)
    for row in range(len(_TEXTS)):
        assert np.allclose(got.weights[row], expected[row, got.terms[row]], atol=0.03)
        left_out = np.delete(expected[row], got.terms[row])
        assert left_out.max() <= got.weights[row].min() + 0.03


@pytest.mark.models
def test_a_second_run_reads_the_encodings_instead_of_computing_them(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Teacher(work).dense(_TEXTS)

    def never(*_: object) -> dict[str, np.ndarray]:
        raise AssertionError("encoded again")

    monkeypatch.setattr(teacher_module, "encode_dense", never)
    assert np.array_equal(Teacher(work).dense(_TEXTS), first)
    with pytest.raises(AssertionError, match="encoded again"):
        Teacher(work).dense([*_TEXTS, "a text that is new"])


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_sparse_scores_equal_sums_over_shared_terms(seed: int, queries: int, passages: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(count: int) -> SparseRows:
        terms = np.stack([rng.permutation(12)[:4] for _ in range(count)]).astype(np.int32)
        return SparseRows(terms, rng.random((count, 4), dtype=np.float32), 12)

    left, right = rows(queries), rows(passages)
    expected = [
        [
            sum(
                float(a) * float(b)
                for t, a in zip(left.terms[q], left.weights[q], strict=True)
                for u, b in zip(right.terms[p], right.weights[p], strict=True)
                if t == u
            )
            for p in range(passages)
        ]
        for q in range(queries)
    ]
    assert np.allclose(sparse_scores(left, right), expected, atol=1e-5)


_tables = arrays.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32))


@given(_tables, _tables, st.floats(0, 1))
def test_the_combination_is_convex_per_query_and_keeps_a_single_models_order(
    dense: np.ndarray, sparse: np.ndarray, weight: float
) -> None:
    both = combine(dense, sparse, weight)
    assert both.min() >= 0
    assert both.max() <= 1 + 1e-5
    scaled = min_max(dense)
    for row in range(len(dense)):
        low, high = float(dense[row].min()), float(dense[row].max())
        expected = [(float(x) - low) / (high - low) if high > low else 0.0 for x in dense[row]]
        assert np.allclose(scaled[row], expected, atol=1e-4)
    assert np.allclose(combine(dense, sparse, 1.0), scaled)


def test_dense_scores_are_cosines_of_unit_vectors() -> None:
    assert dense_scores(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)).tolist() == [[1, 0], [0, 1]]
