"""Judge retrieval quality: compare a run with another, and let it pass a gate or not.

All functions are pure and work on one value per query, in frames ``public_id, value`` from ``retrieval/evaluation.py``.
Frames that are not over the same queries, or over none, are an ``ArtefactError``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stages import first_stage_lists, list_title

COMMON_SHARE = 0.8
"""Share of the queries that two evaluations must have in common to be compared."""

GATED_MEASURE = "nDCG@10"
"""The measure whose values the gates compare."""

_ROUNDING = 1e-9  # so that a difference of exactly epsilon passes

RERANK_EPSILON = 0.005
"""Loss of mean nDCG@10 that reranking may cost; smaller differences are within the noise of model precision."""

FUSION_EPSILON = 0.005
"""Loss against the best single list that fusion may cost: as much as reranking may."""

_RESAMPLES = 9_999
"""Drawn sign patterns and bootstrap samples: the standard error of a p-value near 0.05 is then 0.002."""

_CELLS_AT_ONCE = 2_000_000
"""Resampled values held in memory at once: 16 MB of float64. scipy.stats does the same, and its import takes half a
second of every run."""


@dataclass(frozen=True)
class Difference:
    """The distance of two runs on the same queries: ``delta``, the mean of current minus that of baseline.

    ``low`` to ``high`` is its 95 % bootstrap interval; ``p_value`` is two-sided, of a paired randomisation test.
    """

    delta: float
    p_value: float
    low: float
    high: float
    queries: int

    def numbers(self) -> dict[str, float]:
        """Give the figures, for metadata."""
        return {
            "delta": self.delta,
            "p_value": self.p_value,
            "delta_low": self.low,
            "delta_high": self.high,
            "queries": self.queries,
        }

    def in_words(self) -> str:
        """Give the figures in one phrase."""
        return (
            f"{self.delta:+.4f} over {self.queries} queries, 95 % interval {self.low:+.4f} to {self.high:+.4f}, "
            f"p = {self.p_value:.3g}"
        )


@dataclass(frozen=True)
class Comparison(Difference):
    """A difference, and whether it counts.

    ``equal`` means within tolerance: too small, or not more than chance. With too few queries for the test to reach
    ``alpha`` even if all agreed, the effect alone decides.
    """

    outcome: Literal["equal", "better", "worse"]
    decided_by: Literal["test", "effect"]


@dataclass(frozen=True)
class QualityVerdict:
    """The verdict of one quality gate, with figures for plots, and the comparison and advice in words.

    ``only_warns`` keeps a failure from being an error.
    """

    name: str
    passed: bool
    numbers: Mapping[str, float]
    message: str
    only_warns: bool = False


def randomisation_test(differences: NDArray[np.float64], *, seed: int = 0, resamples: int = _RESAMPLES) -> float:
    """Compute the two-sided p-value of a paired randomisation (sign-flip) test of the mean difference.

    Under the null hypothesis the two runs are exchangeable per query, so every difference (``[n_queries] float64``)
    could as well have the other sign (Smucker, Allan and Carterette, CIKM 2007). The p-value is the share of sign
    patterns whose mean is at least as far from 0 as the observed one. It is exact if there are at most ``resamples``
    patterns. Otherwise patterns are drawn, and it is (hits + 1) / (resamples + 1). It is 1 if fewer than two queries
    differ.
    """
    changed = differences[differences != 0]
    if len(changed) < 2:
        return 1.0
    generator, patterns = np.random.default_rng(seed), 2 ** len(changed)
    exact = patterns <= resamples
    least = abs(changed.sum()) - _ROUNDING * np.abs(changed).sum()  # sums of the same numbers differ by their order
    hits = 0
    for numbers in _parts(patterns if exact else resamples, len(changed)):
        if exact:
            signs = numbers[:, None] >> np.arange(len(changed)) & 1
        else:
            signs = generator.integers(0, 2, (len(numbers), len(changed)), np.int8)
        hits += int(np.count_nonzero(np.abs((1.0 - 2 * signs) @ changed) >= least))
    return hits / patterns if exact else (hits + 1) / (resamples + 1)


def smallest_p_value(n_queries: int) -> float:
    """Give the smallest p-value of a randomisation test over so many queries: all differences have one sign."""
    return float(min(1.0, 2.0 ** (1 - n_queries)))


def bootstrap_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """Compute the percentile bootstrap confidence interval of the mean of ``[n_queries] float64``, both ends.

    Queries are drawn with replacement. A single value is both ends; without values both are NaN.
    """
    if len(values) < 2:
        only = float(values[0]) if len(values) else float("nan")
        return only, only
    if not values.any():  # as where nothing was reranked: every sample's mean is 0
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), (len(numbers), len(values)))].mean(axis=1)
            for numbers in _parts(resamples, len(values))
        ]
    )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _parts(samples: int, values: int) -> Iterator[NDArray[np.int64]]:
    """Number the samples, a part of them at a time, so that not more than ``_CELLS_AT_ONCE`` values are held."""
    step = max(1, _CELLS_AT_ONCE // values)
    for first in range(0, samples, step):
        yield np.arange(first, min(first + step, samples))


def measure_difference(baseline: pl.DataFrame, current: pl.DataFrame) -> Difference:
    """Measure the difference of two runs, one row per query."""
    differences = _paired(baseline, current)
    low, high = bootstrap_interval(differences)
    return Difference(float(differences.mean()), randomisation_test(differences), low, high, len(differences))


def compare(baseline: pl.DataFrame, current: pl.DataFrame, *, minimum_effect: float, alpha: float) -> Comparison:
    """Call a run better or worse if its mean moved by ``minimum_effect`` and the move is significant, else equal."""
    difference = measure_difference(baseline, current)
    delta = difference.delta
    testable = smallest_p_value(difference.queries) < alpha
    significant = difference.p_value < alpha or not testable
    counts = delta != 0 and abs(delta) >= minimum_effect - _ROUNDING and significant
    outcome: Literal["equal", "better", "worse"] = ("better" if delta > 0 else "worse") if counts else "equal"
    return Comparison(**asdict(difference), outcome=outcome, decided_by="test" if testable else "effect")


def compare_common(baseline: pl.DataFrame, current: pl.DataFrame, *, minimum_effect: float, alpha: float) -> Comparison:
    """Compare on the queries that both have: a collection may gain and lose a few between two runs.

    Less than ``COMMON_SHARE`` of either side's queries is an ``ArtefactError``.
    """
    common = baseline.select("public_id").join(current.select("public_id"), on="public_id", how="inner")
    if len(common) < COMMON_SHARE * max(len(baseline), len(current)) or not len(common):
        raise ArtefactError(
            f"only {len(common)} queries are both in the baseline ({len(baseline)}) and in this evaluation "
            f"({len(current)}): too few to compare. Accept a new baseline: ensemble-assets baseline accept BUNDLE"
        )
    before, after = (frame.join(common, on="public_id", how="semi") for frame in (baseline, current))
    return compare(before, after, minimum_effect=minimum_effect, alpha=alpha)


def quality_regression(comparison: Comparison) -> QualityVerdict:
    """Pass unless the current run is worse than the accepted baseline."""
    advice = {
        "equal": "equal to the accepted baseline within tolerance",
        "better": "better than the accepted baseline. Record it with: ensemble-assets baseline accept BUNDLE",
        "worse": (
            "worse than the accepted baseline. Look at the queries that lost most and at what changed (models, "
            "revisions, chunks, settings); if the loss is intended: ensemble-assets baseline accept BUNDLE"
        ),
    }
    message = f"{GATED_MEASURE} {comparison.in_words()}: {advice[comparison.outcome]}"
    return QualityVerdict("quality_regression", comparison.outcome != "worse", comparison.numbers(), message)


def rerank_not_worse(fused: pl.DataFrame, reranked: pl.DataFrame) -> QualityVerdict:
    """Pass if the reranked mean is at least the fused mean minus ``RERANK_EPSILON``.

    The interval and the p-value inform and do not decide.
    """
    difference = measure_difference(fused, reranked)
    passed = difference.delta >= -RERANK_EPSILON - _ROUNDING
    outcome = f"{'within' if passed else 'more than'} the tolerated loss of {RERANK_EPSILON}"
    if not passed:
        outcome += (
            ". Lower the reranker's share in the final score or its depth, choose another reranker, or turn reranking "
            "off for this collection"
        )
    means = {"fused": _mean(fused), "reranked": _mean(reranked)}
    numbers = {**difference.numbers(), "epsilon": RERANK_EPSILON, **means}
    message = f"{GATED_MEASURE} reranked against fused {difference.in_words()}: {outcome}"
    return QualityVerdict("rerank_not_worse", passed, numbers, message)


def fusion_not_worse(fused: pl.DataFrame, singles: Mapping[str, pl.DataFrame]) -> QualityVerdict:
    """Pass if the fused mean is at least that of the best single list minus ``FUSION_EPSILON``.

    On several public collections fusion loses to the better of its parts, so that is a warning. Rightly configured
    fusion never falls below the weakest.
    """
    if not singles:
        raise ArtefactError("fusion cannot be judged without a single list. Evaluate dense or sparse as well")
    for single in singles.values():
        _require_same_queries(single, fused)
    means = {name: _mean(single) for name, single in singles.items()}
    weakest = min(means, key=lambda name: (means[name], name))
    strongest = max(means, key=lambda name: (means[name], name))
    passed = _mean(fused) >= means[strongest] - FUSION_EPSILON - _ROUNDING
    broken = _mean(fused) < means[weakest] - _ROUNDING
    parts = ", ".join(f"{list_title(name)} {mean:.4f}" for name, mean in means.items())
    if passed:
        outcome = f"within the tolerated loss of {FUSION_EPSILON} of the best, {list_title(strongest)}"
    elif broken:
        outcome = f"below the weakest, {list_title(weakest)}. {_SAME}; {_BETTER}"
    else:
        outcome = f"below the best, {list_title(strongest)}, by more than {FUSION_EPSILON}; {_BETTER}"
    extremes = {"weakest": means[weakest], "strongest": means[strongest]}
    numbers = {"fused": _mean(fused), **extremes, "epsilon": FUSION_EPSILON}
    message = f"{GATED_MEASURE} fused {_mean(fused):.4f} of {parts}: {outcome.format(strongest=list_title(strongest))}"
    return QualityVerdict("fusion_not_worse", passed, numbers, message, only_warns=not broken)


_SAME = "Check that all lists are over the same chunks and queries"
_BETTER = "choose another fusion method, fit weights on training judgements, or use {strongest} alone"


def losses(means: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Say by the means alone what the two gates of lists say: ``means`` is list -> measure -> mean."""
    gated = {name: by_measure[GATED_MEASURE] for name, by_measure in means.items() if GATED_MEASURE in by_measure}
    singles = {name: gated[name] for name in first_stage_lists() if name in gated}
    if {"fused", "reranked"} <= gated.keys() and gated["reranked"] < gated["fused"] - RERANK_EPSILON - _ROUNDING:
        yield f"reranking loses {gated['fused'] - gated['reranked']:.4f} {GATED_MEASURE} against the fused list"
    if singles and "fused" in gated:
        best = max(singles, key=lambda name: (singles[name], name))
        if gated["fused"] < singles[best] - FUSION_EPSILON - _ROUNDING:
            lost = singles[best] - gated["fused"]
            yield f"the fused list loses {lost:.4f} {GATED_MEASURE} against {list_title(best)} alone"


def _mean(values: pl.DataFrame) -> float:
    return float(values["value"].to_numpy().mean())


def _paired(baseline: pl.DataFrame, current: pl.DataFrame) -> NDArray[np.float64]:
    """Subtract baseline from current per query, ``[n_queries] float64``, queries by id."""
    _require_same_queries(baseline, current)
    before, after = (frame.sort("public_id")["value"].to_numpy().astype(np.float64) for frame in (baseline, current))
    return after - before


def _require_same_queries(baseline: pl.DataFrame, current: pl.DataFrame) -> None:
    before, after = set(baseline["public_id"]), set(current["public_id"])
    if before != after or len(before) != len(baseline) or len(after) != len(current):
        raise ArtefactError(
            f"two runs can only be compared on the same queries: {len(before - after)} are only in the first "
            f"({len(baseline)} values), {len(after - before)} only in the second ({len(current)} values). Evaluate "
            "both with the same judgements; for a baseline: ensemble-assets baseline accept BUNDLE"
        )
    if not before:
        raise ArtefactError("there is no judged query to compare on. Add relevance judgements")
