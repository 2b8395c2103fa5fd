"""Verdicts about retrieval quality: is a run better than, worse than or as good as another, and does it pass.

Pure functions on per-query values; Dagster checks and the CLI show their results. Measuring is ``evaluation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.retrieval.significance import bootstrap_interval, randomisation_test, smallest_p_value

COMMON_SHARE = 0.8
"""Share of the queries that two evaluations must have in common to be compared."""

_ROUNDING = 1e-9  # so that a difference of exactly epsilon passes


@dataclass(frozen=True)
class Verdict:
    """How two runs compare on the same queries.

    Attributes:
        verdict: ``equal`` means within tolerance: too small, or not more than chance.
        delta: mean of current minus mean of baseline.
        p_value: two-sided, paired randomisation test.
        low: lower end of the 95 % bootstrap interval of ``delta``.
        high: upper end.
        queries: paired queries.
        decided_by: ``test`` when effect and test decided; ``effect`` when there are too few queries for the test to
            reach ``alpha`` even if all agreed, so that the effect alone decided.
    """

    verdict: Literal["equal", "better", "worse"]
    delta: float
    p_value: float
    low: float
    high: float
    queries: int
    decided_by: Literal["test", "effect"]

    def numbers(self) -> dict[str, float]:
        """The figures, for metadata."""
        return {
            "delta": self.delta,
            "p_value": self.p_value,
            "delta_low": self.low,
            "delta_high": self.high,
            "queries": self.queries,
        }

    def in_words(self) -> str:
        """The figures in one phrase."""
        return (
            f"{self.delta:+.4f} over {self.queries} queries, 95 % interval {self.low:+.4f} to {self.high:+.4f}, "
            f"p = {self.p_value:.3g}"
        )


@dataclass(frozen=True)
class GateResult:
    """Outcome of one gate.

    Attributes:
        name: name of the check.
        passed: whether quality is good enough.
        numbers: figures for plots.
        message: what was found and, when it did not pass, what to do.
    """

    name: str
    passed: bool
    numbers: Mapping[str, float]
    message: str


def compare(
    baseline: pl.DataFrame,
    current: pl.DataFrame,
    *,
    minimum_effect: float = 0.005,
    alpha: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """Better or worse if the mean moved by at least ``minimum_effect`` and the move is significant; equal otherwise.

    Args:
        baseline: ``public_id, value``, one row per query.
        current: the same queries.
        minimum_effect: smallest difference of the means that counts, at least 0.
        alpha: significance level, 0 to 1.
        seed: of the resampling.

    Raises:
        ArtefactError: if the two are not over the same queries, or over none.
    """
    differences = _paired(baseline, current)
    delta = float(differences.mean())
    p_value = randomisation_test(differences, seed=seed)
    testable = smallest_p_value(len(differences)) < alpha
    counts = delta != 0 and abs(delta) >= minimum_effect - _ROUNDING and (p_value < alpha or not testable)
    low, high = bootstrap_interval(differences, seed=seed)
    return Verdict(
        verdict=("better" if delta > 0 else "worse") if counts else "equal",
        delta=delta,
        p_value=p_value,
        low=low,
        high=high,
        queries=len(differences),
        decided_by="test" if testable else "effect",
    )


def compare_common(
    baseline: pl.DataFrame,
    current: pl.DataFrame,
    *,
    minimum_effect: float = 0.005,
    alpha: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """``compare`` on the queries that both have: a collection may gain and lose a few between two runs.

    Raises:
        ArtefactError: if fewer than ``COMMON_SHARE`` of either side's queries are common.
    """
    common = baseline.select("public_id").join(current.select("public_id"), on="public_id", how="inner")
    if len(common) < COMMON_SHARE * max(len(baseline), len(current)) or not len(common):
        raise ArtefactError(
            f"only {len(common)} queries are both in the baseline ({len(baseline)}) and in this evaluation "
            f"({len(current)}): too few to compare. Accept a new baseline: ensemble-assets baseline accept BUNDLE"
        )
    kept = [frame.join(common, on="public_id", how="semi") for frame in (baseline, current)]
    return compare(*kept, minimum_effect=minimum_effect, alpha=alpha, seed=seed)


def quality_regression(verdict: Verdict, measure: str = "nDCG@10") -> GateResult:
    """Passes unless the current run is worse than the accepted baseline."""
    advice = {
        "equal": "equal to the accepted baseline within tolerance",
        "better": "better than the accepted baseline. Record it with: ensemble-assets baseline accept BUNDLE",
        "worse": (
            "worse than the accepted baseline. Look at the queries that lost most and at what changed (models, "
            "revisions, chunks, settings); if the loss is intended: ensemble-assets baseline accept BUNDLE"
        ),
    }
    message = f"{measure} {verdict.in_words()}: {advice[verdict.verdict]}"
    return GateResult("quality_regression", verdict.verdict != "worse", verdict.numbers(), message)


def rerank_not_worse(
    fused: pl.DataFrame, reranked: pl.DataFrame, *, epsilon: float = 0.005, measure: str = "nDCG@10", seed: int = 0
) -> GateResult:
    """Passes if the reranked mean is at least the fused mean minus ``epsilon``.

    Args:
        fused: ``public_id, value`` of the fused run, one row per query.
        reranked: the same queries.
        epsilon: loss that is tolerated.
        measure: for the message.
        seed: of the interval and the p-value, which inform and do not decide.

    Raises:
        ArtefactError: if the two are not over the same queries, or over none.
    """
    verdict = compare(fused, reranked, minimum_effect=epsilon, seed=seed)
    passed = verdict.delta >= -epsilon - _ROUNDING
    outcome = (
        f"within the tolerated loss of {epsilon}"
        if passed
        else f"more than the tolerated loss of {epsilon}. Lower the reranker's share in the final score or its depth, "
        "choose another reranker, or turn reranking off for this collection"
    )
    numbers = {**verdict.numbers(), "epsilon": epsilon, "fused": _mean(fused), "reranked": _mean(reranked)}
    return GateResult(
        "rerank_not_worse", passed, numbers, f"{measure} reranked against fused {verdict.in_words()}: {outcome}"
    )


def fusion_not_worse(
    fused: pl.DataFrame, singles: Mapping[str, pl.DataFrame], *, epsilon: float = 0.0, measure: str = "nDCG@10"
) -> GateResult:
    """Passes if the fused mean is at least that of the weakest single list minus ``epsilon``.

    Not the strongest: on several public collections fusion loses to the better of its parts, and rightly configured
    fusion still never falls below the weaker one.

    Args:
        fused: ``public_id, value`` of the fused run, one row per query.
        singles: the same for each list that went in, by name; at least one.
        epsilon: loss that is tolerated.
        measure: for the message.

    Raises:
        ArtefactError: if the runs are not over the same queries, or there is no single list.
    """
    if not singles:
        raise ArtefactError("fusion cannot be judged without a single list. Evaluate dense or sparse as well")
    for single in singles.values():
        _paired(single, fused)
    means = {name: _mean(single) for name, single in singles.items()}
    weakest = min(means, key=lambda name: (means[name], name))
    strongest = max(means, key=lambda name: (means[name], name))
    passed = _mean(fused) >= means[weakest] - epsilon - _ROUNDING
    parts = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    outcome = (
        f"at least the weakest, {weakest}"
        if passed
        else f"below the weakest, {weakest}. Check that all lists are over the same chunks and queries; then choose "
        f"another fusion method, fit weights on training judgements, or use {strongest} alone"
    )
    numbers = {"fused": _mean(fused), "weakest": means[weakest], "strongest": means[strongest], "epsilon": epsilon}
    message = f"{measure} fused {_mean(fused):.4f} of {parts}: {outcome}"
    return GateResult("fusion_not_worse", passed, numbers, message)


def _mean(values: pl.DataFrame) -> float:
    return float(values["value"].to_numpy().mean())


def _paired(baseline: pl.DataFrame, current: pl.DataFrame) -> NDArray[np.float64]:
    """Current minus baseline per query, ``[n_queries] float64``, queries by id."""
    sets = [set(frame["public_id"]) for frame in (baseline, current)]
    if sets[0] != sets[1] or len(sets[0]) != len(baseline) or len(sets[1]) != len(current):
        raise ArtefactError(
            f"two runs can only be compared on the same queries: {len(sets[0] - sets[1])} are only in the first "
            f"({len(baseline)} values), {len(sets[1] - sets[0])} only in the second ({len(current)} values). Evaluate "
            "both with the same judgements; for a baseline: ensemble-assets baseline accept BUNDLE"
        )
    if not sets[0]:
        raise ArtefactError("there is no judged query to compare on. Add relevance judgements")
    first, second = (frame.sort("public_id")["value"].to_numpy().astype(np.float64) for frame in (baseline, current))
    return second - first
