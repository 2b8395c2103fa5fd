"""Hold the facts that the report shows; derive the run's times, its limit, and the figures that compare runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.defaults import CEILING_BYTES
from ensemble_assets.common.stage_times import LIMIT_RATIO


@dataclass(frozen=True)
class Stage:
    """One stage of the run; numbers are None where nobody recorded them."""

    name: str
    status: str
    reason: str = ""
    seconds: float | None = None
    items: float | None = None
    tokens: float | None = None
    device: str = ""
    peak_bytes: float | None = None
    ceiling_bytes: float | None = None
    fallbacks: float | None = None
    truncated: float | None = None
    wait_seconds: float | None = None
    reused: float | None = None


@dataclass(frozen=True)
class Memory:
    """Memory in use on one device over time; ``[n] float64`` seconds and bytes, in order of time."""

    device: str
    times: NDArray[np.float64]
    used: NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """Everything that the report shows.

    Attributes:
        generated_at: when the bundle was written, ISO 8601 to the second, or empty.
        baseline_seconds: seconds of the dense-only engine; None without a stored baseline.
        limit_ratio: most that the whole run may take, as a multiple of ``baseline_seconds``.
        scores: finite scores per ranked list, ``[n] float64``.
        moves: fused rank minus final rank of every reranked candidate, ``[n] float64``; up is positive.
        top_changed: queries whose first candidate changed, and all queries.
        fallbacks: rows of stage, reason, stand-in, count; ``toggles`` of option, value, layer, source.
        quality: mean per ranked list and measure.
        judged_by: name of the file of judgements, if data sets are published with such a name; empty without one.
        previous: ``figures`` of the collection's run before; ``accepted`` of its accepted baseline.
        made_with: processor and versions by name.
        unread: sampled chunks in a language that no dense model reads, and all that were sampled; (0, 0): none.
    """

    collection: str
    generated_at: str
    schema: str
    chunks: int | None
    stages: tuple[Stage, ...]
    baseline_seconds: float | None = None
    limit_ratio: float = LIMIT_RATIO
    ratios: Mapping[str, float] = field(default_factory=dict)
    memory: tuple[Memory, ...] = ()
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    moves: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    top_changed: tuple[int, int] = (0, 0)
    coverage: Mapping[str, float] = field(default_factory=dict)
    fallbacks: tuple[tuple[str, str, str, int], ...] = ()
    toggles: tuple[tuple[str, str, str, str], ...] = ()
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: int = 0
    warning_texts: tuple[str, ...] = ()
    derived: bool = False
    models: tuple[tuple[str, str, str], ...] = ()
    unread: tuple[int, int] = (0, 0)
    judged_by: str = ""
    previous: Mapping[str, float] = field(default_factory=dict)
    accepted: Mapping[str, float] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """Figures that compare runs: quality of every list, and seconds of stages that took nothing over."""
        seconds = {
            f"{stage.name}, seconds": stage.seconds
            for stage in self.stages
            if stage.seconds is not None and not stage.reused
        }
        return {"chunks": float(self.chunks or 0)} | quality_figures(self.quality) | seconds

    @property
    def times(self) -> tuple[tuple[str, float, float], ...]:
        """Name, begin and length in seconds of each stage that ran, one after the other."""
        ran = [(stage.name, stage.seconds) for stage in self.stages if stage.seconds is not None]
        ends = accumulate((seconds for _, seconds in ran), initial=0.0)
        return tuple((name, begin, seconds) for begin, (name, seconds) in zip(ends, ran, strict=False))

    @property
    def reference(self) -> tuple[float | None, str]:
        """Seconds that the run is compared with, and their name: the stored baseline, else its own dense stage."""
        if self.baseline_seconds is not None:
            return self.baseline_seconds, "dense-only baseline"
        own = (seconds for name, _, seconds in self.times if name == "dense")
        return next(own, None), "this run's dense stage"

    @property
    def limit(self) -> tuple[str, float] | None:
        """Name and seconds of the most that the run may take; None without a stored baseline, which the limit is of."""
        if self.baseline_seconds is None:
            return None
        return f"{self.limit_name} over {self.reference[1]}", self.baseline_seconds * self.limit_ratio

    @property
    def limit_name(self) -> str:
        """The limit's name without the time that it is a share of."""
        return f"the limit of {100 * (self.limit_ratio - 1):.0f} %"

    def ceiling(self, device: str) -> float | None:
        """Find the memory ceiling of a device in bytes. GPUs without a recorded one have the default."""
        recorded = max((stage.ceiling_bytes for stage in self.stages if stage.ceiling_bytes), default=None)
        if recorded or not device or device.startswith(("cpu", "none")):
            return recorded
        return float(CEILING_BYTES)


def quality_figures(quality: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Name every mean by its list and measure: ``fused, nDCG@10``."""
    return {f"{name}, {measure}": mean for name, means in quality.items() for measure, mean in means.items()}
