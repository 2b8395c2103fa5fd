"""The fitted model of peak memory: finds the truth where there is one, never lets a larger batch be smaller."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from ensemble_assets.compute.batching.memory_model import PeakModel

sizes = st.tuples(st.integers(1, 200), st.integers(16, 2048)).map(lambda pair: (pair[0] * pair[1], pair[1]))


def fitted(truth: tuple[float, float, float, float], batches: list[tuple[int, int]]) -> PeakModel:
    model = PeakModel()
    for tokens, longest in batches:
        base, token, square, row = truth
        peak = base + token * tokens + square * tokens * longest + row * tokens / longest
        model.observe(tokens, longest, int(peak))
    return model


def reference_fit(rows: np.ndarray, targets: np.ndarray) -> float:
    """Least squared error with SciPy's solver (Lawson & Hanson 1974, chapter 23)."""
    return float(nnls(rows, targets)[1] ** 2)


@given(
    st.tuples(st.floats(0, 5e9), st.floats(0, 1e6), st.floats(0, 500), st.floats(0, 1e7)),
    st.lists(sizes, min_size=12, max_size=30, unique=True),
)
def test_batches_that_were_seen_are_predicted(
    truth: tuple[float, float, float, float], batches: list[tuple[int, int]]
) -> None:
    model = fitted(truth, batches)
    for seen in model.observations:
        assert model.predict(seen.tokens, seen.longest) == pytest.approx(seen.peak_bytes, rel=1e-3, abs=1e5)


@given(st.lists(st.tuples(sizes, st.integers(1, 12_000)), min_size=1, max_size=20))
def test_a_larger_batch_never_takes_less_and_no_other_fit_is_better(seen: list[tuple[tuple[int, int], int]]) -> None:
    model = PeakModel()
    for (tokens, longest), megabytes in seen:
        model.observe(tokens, longest, megabytes * 1_000_000)
    assert min(model.coefficients) >= 0
    kept = np.array(model.observations, float)
    rows = np.stack([np.ones(len(kept)), kept[:, 0], kept[:, 0] * kept[:, 1], kept[:, 0] / kept[:, 1]], axis=1)
    rows /= np.abs(rows).max(axis=0)
    predicted = np.array([model.predict(int(tokens), int(longest)) for tokens, longest, _ in kept])
    error = float(np.square(predicted - kept[:, 2]).sum())
    assert error <= reference_fit(rows, kept[:, 2]) * 1.01 + 1e10 * len(kept)  # (0.1 MB)² for the tie-break


@given(st.lists(sizes, min_size=8, max_size=20, unique=True), st.integers(16, 2048), st.floats(1e9, 2e10))
def test_a_batch_within_the_limit_is_predicted_within_it(
    batches: list[tuple[int, int]], longest: int, limit: float
) -> None:
    model = fitted((5e8, 1e5, 20.0, 1e6), batches)
    tokens = model.tokens_within(limit, longest)
    assert model.predict(int(tokens), longest) * (1 + model.error) <= limit * (1 + 1e-6)
    assert model.predict(int(tokens) + longest, longest) * (1 + model.error) > limit * (1 - 1e-6)


def test_alike_batches_are_explained_by_their_tokens() -> None:
    model = PeakModel()
    model.observe(0, 0, 1_000_000_000)
    for _ in range(3):
        model.observe(4096, 256, 1_000_000_000 + 4096 * 100_000)
    assert model.predict(8192, 256) == pytest.approx(1e9 + 8192 * 1e5, rel=0.01)
    assert model.predict(4096, 64) == pytest.approx(1e9 + 4096 * 1e5, rel=0.02)


def test_a_batch_that_took_more_than_predicted_raises_the_error() -> None:
    model = fitted((1e9, 1e5, 0.0, 0.0), [(tokens * 256, 256) for tokens in range(20, 40)])
    assert model.error == pytest.approx(0.01)
    model.observe(39 * 256, 256, int(1.2 * (1e9 + 1e5 * 39 * 256)))
    assert model.error > 0.1


def test_the_loaded_model_alone_says_nothing_about_batches() -> None:
    model = PeakModel()
    model.observe(0, 0, 3_000_000_000)
    assert not model.fitted
    model.observe(100, 100, 3_100_000_000)
    assert model.fitted


def test_small_batches_are_not_forgotten_while_large_ones_run() -> None:
    model = fitted((1e9, 1e5, 0.0, 0.0), [(512, 64)] + [(65536 + index, 64) for index in range(500)])
    assert model.observations[0].tokens == 512
    assert len(model.observations) <= 1 + 8 * 2
