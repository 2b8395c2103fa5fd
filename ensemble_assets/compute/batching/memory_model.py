"""Predict the memory of a batch: ``peak = a + b·tokens + c·tokens·longest + d·rows``, fitted while batches run.

``a`` is the memory of the weights, ``b`` of every padded token, ``c`` of attention that is not fused, ``d`` of every
row (a sparse encoder holds a number per vocabulary entry).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Coefficients = tuple[float, float, float, float]

_PER_CLASS = 8
"""Observations per size class: enough to average over noise, few enough to follow a change."""

_CERTAIN = 6
"""Observations from which on the fit's own residuals tell how far it may be off."""

_LEAST_ERROR, _EARLY_ERROR = 0.01, 0.05
"""Shares by which a prediction is taken to be off: at least, and with few observations."""

_UNITS = np.array([1.0, 1e4, 1e6, 1e2])
"""Scales that bring the four columns to a similar size, so that least squares are well conditioned."""

_SUPPORTS = [list(columns) for size in range(1, 5) for columns in combinations(range(4), size)]
"""All choices of coefficients that are not zero."""

_TIE_BREAK = np.array([0.0, 0.0, 1e-5, 1e-5])
"""A small penalty: if batches are too alike to tell the causes apart, tokens explain the peak."""


class Observation(NamedTuple):
    """The peak of one batch: padded tokens, tokens of its longest row, bytes."""

    tokens: int
    longest: int
    peak_bytes: int


class PeakModel:
    """A non-negative least-squares fit over the last observations of every size class.

    A size class is a power of two in tokens and in length. Each class has its own observations, so long rows are not
    forgotten while short ones run. Coefficients cannot be negative, so a larger batch is never predicted to take less.
    With four coefficients, every choice of nonzero ones can be tried. That needs no solver: importing scipy's would
    cost half a second in every process.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._classes: dict[tuple[int, int], deque[Observation]] = {}
        self._fit: Coefficients | None = None
        self._error: float | None = None
        for observation in observations:
            self.observe(*observation)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The observations of all classes."""
        return tuple(observation for members in self._classes.values() for observation in members)

    @property
    def fitted(self) -> bool:
        """Whether a batch was observed. The loaded model alone does not tell the memory of tokens."""
        return any(tokens for tokens, _ in self._classes)

    def observe(self, tokens: int, longest: int, peak_bytes: int) -> None:
        """Learn from one batch. ``tokens = 0`` is the loaded model before any batch; its last call counts."""
        size_class = (tokens.bit_length(), longest.bit_length())
        members = self._classes.setdefault(size_class, deque(maxlen=_PER_CLASS if tokens else 1))
        members.append(Observation(tokens, longest, peak_bytes))
        self._fit = self._error = None

    @property
    def coefficients(self) -> Coefficients:
        """The fit: bytes, bytes per token, per token and position, per row."""
        if self._fit is None:
            self._fit = _fit(self.observations)
        return self._fit

    @property
    def error(self) -> float:
        """The share by which a large batch may exceed its prediction: the worst of the observations.

        Small batches are left out, since allocators round up and that is a large share of little.
        """
        if self._error is None:
            observations = self.observations
            large = max((tokens for tokens, _, _ in observations), default=0) / 2
            over = [
                peak_bytes / max(self.predict(tokens, longest), 1.0) - 1.0
                for tokens, longest, peak_bytes in observations
                if tokens >= large
            ]
            self._error = max(_LEAST_ERROR if len(over) >= _CERTAIN else _EARLY_ERROR, *over, 0.0)
        return self._error

    def predict(self, tokens: int, longest: int) -> float:
        """Predict the peak in bytes."""
        base, per_token, per_square, per_row = self.coefficients
        return base + tokens * (per_token + per_square * longest + per_row / max(longest, 1))

    def tokens_within(self, limit_bytes: float, longest: int) -> float:
        """Return the most padded tokens whose peak, error included, stays within the limit.

        The number is infinite if tokens take no memory, and negative if the weights exceed the limit.
        """
        base, per_token, per_square, per_row = self.coefficients
        slope = per_token + per_square * longest + per_row / longest
        room = limit_bytes / (1.0 + self.error) - base
        return room / slope if slope > 0 else (float("inf") if room >= 0 else -1.0)


def _fit(observations: Sequence[Observation]) -> Coefficients:
    if not observations:
        return (0.0, 0.0, 0.0, 0.0)
    tokens, longest, peaks = np.array(observations, np.float64).T
    columns = np.stack([np.ones(len(peaks)), tokens, tokens * longest, tokens / np.maximum(longest, 1)], axis=1)
    solution = _nonnegative(np.vstack([columns / _UNITS, np.diag(_TIE_BREAK)]), np.concatenate([peaks, np.zeros(4)]))
    base, per_token, per_square, per_row = (solution / _UNITS).tolist()
    return (base, per_token, per_square, per_row)


def _nonnegative(columns: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve least squares with coefficients of 0 or more, ``[4] float64``.

    The best solution is plain least squares over its nonzero coefficients. So every choice of these is solved, and the
    best solution without a negative coefficient wins.
    """
    basis, triangle = np.linalg.qr(columns)  # the same problem in four rows, so that 15 solutions are cheap
    wanted = basis.T @ targets
    best, error = np.zeros(len(triangle)), float(wanted @ wanted)
    for support in _SUPPORTS:
        solution = np.linalg.lstsq(triangle[:, support], wanted, rcond=None)[0]
        residual = triangle[:, support] @ solution - wanted
        if solution.min() >= 0 and residual @ residual < error:
            error = float(residual @ residual)
            best = np.zeros(len(triangle))
            best[support] = solution
    return best
