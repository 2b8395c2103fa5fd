"""How much memory a batch takes: ``peak = a + b·tokens + c·tokens·longest + d·rows``, fitted while it runs.

``a`` is what the weights and the like take, ``b`` what every padded token takes, ``c`` what attention takes where it is
not fused, ``d`` what every row takes (a sparse encoder keeps a number per vocabulary entry). Only the fit is here; what
is planned with it is ``planner``'s part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Coefficients = tuple[float, float, float, float]

_KEPT_PER_CLASS = 8
_CERTAIN = 6  # observations after which the fit's own residuals say how far it may be off
_LEAST_ERROR, _EARLY_ERROR = 0.01, 0.05
_UNITS = np.array([1.0, 1e4, 1e6, 1e2])  # brings the four columns to a like size
_SUPPORTS = [list(some) for size in range(1, 5) for some in combinations(range(4), size)]
_TIE_BREAK = np.array([0.0, 0.0, 1e-5, 1e-5])  # where batches are too alike to tell, tokens explain them


class Observation(NamedTuple):
    """The peak that one batch had: padded tokens, tokens of its longest row, bytes."""

    tokens: int
    longest: int
    peak_bytes: int


class PeakModel:
    """An online non-negative least-squares fit over the last few observations of every size class.

    A size class is a power of two in tokens and in length; keeping some of each means that the fit is not forgotten
    where the work currently is not. Coefficients cannot be negative, so a larger batch is never predicted to take less.
    With four coefficients every choice of those that are not zero can be tried, which needs no solver (the usual ones
    are slow to import: half a second of every run).
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._classes: dict[tuple[int, int], deque[Observation]] = {}
        self._fit: Coefficients | None = None
        self._error: float | None = None
        for seen in observations:
            self.observe(*seen)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What the fit stands on."""
        return tuple(seen for kept in self._classes.values() for seen in kept)

    @property
    def known(self) -> bool:
        """Whether at least one real batch was observed (the loaded model alone does not tell what tokens take)."""
        return any(tokens for tokens, _ in self._classes)

    def observe(self, tokens: int, longest: int, peak_bytes: int) -> None:
        """Learn from one batch; ``tokens = 0`` says what the loaded model takes before any; the last call counts."""
        size_class = (tokens.bit_length(), longest.bit_length())
        kept = self._classes.setdefault(size_class, deque(maxlen=_KEPT_PER_CLASS if tokens else 1))
        kept.append(Observation(tokens, longest, peak_bytes))
        self._fit = self._error = None

    @property
    def coefficients(self) -> Coefficients:
        """Bytes, bytes per token, per token and position, per row."""
        if self._fit is None:
            self._fit = _fit(self.observations)
        return self._fit

    @property
    def error(self) -> float:
        """The share by which a large batch may take more than predicted, by the worst one that is kept.

        Small batches are left out: allocators round up, which is much of little.
        """
        if self._error is None:
            seen = self.observations
            large = max((one.tokens for one in seen), default=0) / 2
            over = [
                one.peak_bytes / max(self.predict(one.tokens, one.longest), 1.0) - 1.0
                for one in seen
                if one.tokens >= large
            ]
            self._error = max(_LEAST_ERROR if len(over) >= _CERTAIN else _EARLY_ERROR, *over, 0.0)
        return self._error

    def predict(self, tokens: int, longest: int) -> float:
        """Expected peak in bytes."""
        base, per_token, per_square, per_row = self.coefficients
        return base + tokens * (per_token + per_square * longest + per_row / max(longest, 1))

    def tokens_within(self, limit_bytes: float, longest: int) -> float:
        """The most padded tokens whose peak, error included, stays within the limit; may be infinite or negative."""
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
    """Least squares with coefficients of 0 or more, ``[4] float64``.

    The solution is the plain least-squares one over the coefficients that are not zero, so it is the best of those that
    are nowhere negative.
    """
    basis, triangle = np.linalg.qr(columns)  # the same problem in four rows
    wanted = basis.T @ targets
    best, error = np.zeros(len(triangle)), float(wanted @ wanted)
    for support in _SUPPORTS:
        some = np.linalg.lstsq(triangle[:, support], wanted, rcond=None)[0]
        residual = triangle[:, support] @ some - wanted
        if some.min() >= 0 and residual @ residual < error:
            error = float(residual @ residual)
            best = np.zeros(len(triangle))
            best[support] = some
    return best
