"""Whether a difference between two runs is more than chance: paired randomisation test and bootstrap intervals.

Plain numbers in and out; what to do about a difference is decided in ``gates``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 16
"""Differing queries up to which all 2^n sign patterns are counted instead of drawn."""

_CELLS_AT_ONCE = 2_000_000
_ROUNDING = 1e-12  # relative; patterns that equal the observed one but for summation order must count as equal


def randomisation_test(differences: NDArray[np.float64], *, seed: int = 0, resamples: int = 20_000) -> float:
    """Two-sided p-value of a paired randomisation (sign-flip) test of the mean difference.

    Under the null hypothesis the two runs are exchangeable per query, so every difference could as well have the other
    sign (Smucker, Allan and Carterette, CIKM 2007). The p-value is the share of sign patterns whose sum is at least as
    far from 0 as the observed one. Exact with at most ``EXACT_UP_TO`` differences that are not 0; otherwise drawn, with
    (hits + 1) / (resamples + 1).

    Args:
        differences: ``[n_queries] float64``, current minus baseline per query.
        seed: of the drawn patterns; the same seed gives the same value.
        resamples: patterns drawn.

    Returns:
        0 to 1; 1 if no query differs.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    threshold = abs(changed.sum()) - _ROUNDING * np.abs(changed).sum()
    if len(changed) <= EXACT_UP_TO:
        return float(np.mean(np.abs(_all_signed_sums(changed)) >= threshold))
    generator = np.random.default_rng(seed)
    hits = 0
    for count in _blocks(resamples, len(changed)):
        positive = generator.integers(0, 2, size=(count, len(changed)), dtype=np.int8)
        hits += int(np.count_nonzero(np.abs(2 * (positive @ changed) - changed.sum()) >= threshold))
    return (hits + 1) / (resamples + 1)


def smallest_p_value(n_queries: int) -> float:
    """The smallest p-value that a randomisation test over so many queries can give: all differences on one side."""
    return float(min(1.0, 2.0 ** (1 - n_queries)))


def bootstrap_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the mean, queries being drawn with replacement.

    Args:
        values: ``[n_queries] float64``: a measure per query, or paired differences of one.
        confidence: share of the interval, 0 to 1.
        seed: of the draws; the same seed gives the same interval.
        resamples: draws.

    Returns:
        Lower and upper end; ``(nan, nan)`` without values.
    """
    if not len(values):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), size=(count, len(values)))].mean(axis=1)
            for count in _blocks(resamples, len(values))
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _all_signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums under every pattern of signs, ``[2 ** n] float64``."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _blocks(resamples: int, width: int) -> Iterator[int]:
    """Resamples in portions of bounded memory."""
    step = max(1, _CELLS_AT_ONCE // width)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
