"""Hold the product's output against the library's: equal, wrong, refused, fell back or crashed, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.product import Outputs
from ensemble_assets_tests.model_zoo.reference import Truth

Verdict = Literal["equal", "wrong", "refused", "fell back", "crashed"]

_CRASH_WORDS = ("crashed", "unexpected", "fault of the program")
"""What stands in a message that tells nobody what to do."""

_TOP = 10
_TOP_SHARE = 0.99
"""Share of the ten best chunks that must agree where the order is compared; the rest is for ties."""


@dataclass(frozen=True)
class Tolerances:
    """How far a value may lie from the library's.

    Attributes:
        cosine: smallest cosine of two dense vectors.
        component: largest difference of a component of a unit vector.
        weight: largest difference of a sparse weight, as a share of the largest weight where that is above 1.
        score: largest difference of a reranker's score, as a share of the scores' spread.
        product: largest difference of the product of two token vectors, on average over a query's tokens.
    """

    cosine: float = 0.99999
    component: float = 1e-4
    weight: float = 1e-4
    score: float = 1e-5
    product: float = 5e-4  # vectors are kept in half precision


FP32 = Tolerances()
HALF = Tolerances(cosine=0.999, component=2e-2, weight=3e-2, score=3e-2, product=2e-2)
"""For bf16 and fp16: eight bits of mantissa, two layers."""

_SCORE_NOISE = 8e-6
"""Rounding, as a share of the largest score; the library itself differs by 1.4e-5 between batches of 32 and of 3."""


@dataclass(frozen=True)
class Comparison:
    """A layout's verdict.

    Attributes:
        key: of the layout.
        verdict: what happened.
        expected: what should.
        detail: how far off, or the message.
        seconds: of the product's run.
    """

    key: str
    verdict: Verdict
    expected: str
    detail: str
    seconds: float = 0.0

    @property
    def as_expected(self) -> bool:
        """Whether the product did what it should."""
        return self.verdict in {"equal", "refused"} if self.expected == "either" else self.verdict == self.expected


def compare(layout: Layout, outputs: Outputs, truth: Truth | None, tolerances: Tolerances = FP32) -> Comparison:
    """Judge one run.

    Args:
        layout: what was run.
        outputs: of the product.
        truth: of the library; None where the library cannot run the model either.
        tolerances: of the precision that was asked for.
    """
    verdict, detail = _judge(layout, outputs, truth, tolerances)
    return Comparison(layout.key, verdict, layout.expected, detail, outputs.seconds)


def _judge(layout: Layout, outputs: Outputs, truth: Truth | None, tolerances: Tolerances) -> tuple[Verdict, str]:
    if outputs.exit_code != 0 or outputs.message:
        crashed = any(word in outputs.message for word in _CRASH_WORDS)
        verdict: Verdict = "crashed" if crashed else "refused" if outputs.exit_code else "fell back"
        return verdict, outputs.message
    if truth is None:
        return "wrong", "the library cannot run the model, and the product gave an output"
    if layout.kind == "rerank":
        return _scores(outputs, truth, tolerances)
    if layout.kind == "sparse":
        return _weights(outputs, truth, tolerances)
    return _vectors(layout, outputs, truth, tolerances)


def _vectors(layout: Layout, outputs: Outputs, truth: Truth, tolerances: Tolerances) -> tuple[Verdict, str]:
    parts, good = [], True
    for side in ("chunk_vectors", "query_vectors"):
        made, wanted = getattr(outputs, side), getattr(truth, side)
        if made.shape != wanted.shape:
            return "wrong", f"width {made.shape[1]}, the library's {wanted.shape[1]}"
        made, wanted = _unit(made), _unit(wanted)
        cosines = np.where(~made.any(axis=1) & ~wanted.any(axis=1), 1.0, np.einsum("ij,ij->i", made, wanted))
        near = (cosines >= tolerances.cosine) & (np.abs(made - wanted).max(axis=1) <= tolerances.component)
        good &= bool(near.all())
        parts.append(f"{side.split('_')[0]} {near.sum()}/{len(near)} min {cosines.min():.6f}")
    if layout.ranking:  # other layouts may share the search with further models
        share = _top_share(outputs.ranked, truth.ranked)
        good &= share >= _TOP_SHARE
        parts.append(f"top-{_TOP} {share:.3f}")
    return "equal" if good else "wrong", "; ".join(parts)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scale rows to length 1; rows of zeros stay."""
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


def _top_share(made: list[list[int]], wanted: list[list[int]]) -> float:
    if not made:
        return 0.0
    shares = [len(set(a[:_TOP]) & set(b[:_TOP])) / _TOP for a, b in zip(made, wanted, strict=True)]
    return float(np.mean(shares))


def _weights(outputs: Outputs, truth: Truth, tolerances: Tolerances) -> tuple[Verdict, str]:
    parts, good = [], True
    for side in ("chunk_vectors", "query_vectors"):
        made, wanted = getattr(outputs, side), getattr(truth, side)
        if made.shape != wanted.shape:
            return "wrong", f"dimension {made.shape[1]}, the library's {wanted.shape[1]}"
        allowed = tolerances.weight * max(1.0, float(np.abs(wanted).max()))
        off = np.abs(made - wanted).max(axis=1)
        good &= bool((off <= allowed).all())
        parts.append(f"{side.split('_')[0]} {(off <= allowed).sum()}/{len(off)} max diff {off.max():.2g}")
    return "equal" if good else "wrong", f"{'; '.join(parts)} of {np.abs(truth.chunk_vectors).max():.3g}"


def _scores(outputs: Outputs, truth: Truth, tolerances: Tolerances) -> tuple[Verdict, str]:
    """Compare with ``predict`` and with the logits; either will do, since an activation changes no order."""
    assert outputs.scores is not None
    assert truth.logits is not None
    assert truth.scores is not None
    noise = (lambda: tolerances.product * truth.compared) if truth.compared else truth.noise
    near, detail = _near(outputs.scores, truth.logits, "logits", tolerances, noise)
    if near < outputs.scores.size:
        near, detail = max((near, detail), _near(outputs.scores, truth.scores(), "predict", tolerances, float))
    return "equal" if near == outputs.scores.size else "wrong", detail


def _near(
    made: NDArray[np.float32],
    wanted: NDArray[np.float32],
    name: str,
    tolerances: Tolerances,
    noise: Callable[[], float],
) -> tuple[int, str]:
    """Count the scores that lie near enough to the library's, and describe the farthest."""
    off = np.abs(made - wanted)
    spread = float(wanted.std())
    allowed = max(tolerances.score * spread, _SCORE_NOISE * max(1.0, float(np.abs(wanted).max())))
    if not (off <= allowed).all():
        allowed = max(allowed, noise())
    near = int((off <= allowed).sum())
    return near, f"{near}/{off.size} pairs as {name}, max diff {np.nanmax(off):.2g} of spread {spread:.2g}"
