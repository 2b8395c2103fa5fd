"""What a host with two T4s would take: ``python -m ensemble_assets_tests.benchmarks.dual_t4``; prints tables.

The real planner, dispatcher and ceiling drive simulated devices; ``t4_estimates`` says what is assumed of them. The
comparison is a loop with a fixed batch of 32 rows, sorted by length, on one device: what a plain ``encode`` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.defaults import RERANK_DEPTH
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.models.registry import PROFILES, model_spec
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.settings import Settings
from ensemble_assets_tests.benchmarks.t4_estimates import (
    ARCHITECTURES,
    CONTEXT_BYTES,
    LAZY_BYTES,
    T4_BYTES,
    chunk_lengths,
    t4,
)
from ensemble_assets_tests.simulated.model import SimulatedModel
from ensemble_assets_tests.simulated.simulation import SimulationReport, simulate

PROFILE = "kaggle-t4x2"
QUERIES, QUERY_TOKENS = 50, 16
FIXED_ROWS = 32
COLLECTIONS = {"as usual": 0.0, "1 % of 8,192 tokens": 0.01}

PLANNED_COLUMNS = (
    "stage", "model", "rows", "1 x T4", "busy", "peak", "2 x T4", "busy", "peak", "gain", "redone",
)  # fmt: skip
FIXED_COLUMNS = (
    "stage",
    "model",
    "chunks",
    "largest batch",
    "its peak",
    "outcome",
    "mean use",
    "time",
    "planned, 2 x T4",
)


@dataclass(frozen=True)
class Job:
    """One model's rows."""

    stage: ModelKind
    spec: ModelSpec
    lengths: NDArray[np.int64]

    def planned(self, devices: int) -> SimulationReport:
        """As a run would do it on so many T4s."""
        report = simulate(self.lengths, self._model(), [t4(index) for index in range(devices)], worker_settings())
        assert report.error is None
        assert (report.times_done == 1).all()
        return report

    def fixed(self) -> FixedBatches:
        """With a fixed batch of 32 rows on one T4."""
        model, ordered = self._model(), np.sort(self.lengths)[::-1]
        batches = [ordered[start : start + FIXED_ROWS] for start in range(0, len(ordered), FIXED_ROWS)]
        tokens = np.array([len(rows) * rows[0] for rows in batches])
        needs = [model.needs.batch_bytes(int(count), int(rows[0])) for count, rows in zip(tokens, batches, strict=True)]
        peaks = CONTEXT_BYTES + LAZY_BYTES + model.needs.weights + np.array(needs)
        seconds = float((model.speed.overhead + tokens / model.speed.tokens_per_second).sum())
        return FixedBatches(int(tokens.max()), peaks, seconds)

    def _model(self) -> SimulatedModel:
        return ARCHITECTURES[self.spec.slug].simulated()


@dataclass(frozen=True)
class FixedBatches:
    """What a loop with a fixed number of rows does.

    Attributes:
        largest_tokens: padded tokens of its largest batch.
        peaks: ``[batches] float64`` bytes in use on the device.
        seconds: if it came to its end.
    """

    largest_tokens: int
    peaks: NDArray[np.float64]
    seconds: float

    @property
    def outcome(self) -> str:
        """Whether it fits."""
        if self.peaks.max() > T4_BYTES:
            return "out of memory"
        return "over the ceiling" if self.peaks.max() > worker_settings().ceiling.hard_bytes else "fits, second T4 idle"


def worker_settings() -> WorkerSettings:
    """The defaults of a run on GPUs."""
    device = Settings().device
    sizes = SizeSettings(initial_tokens=device.batch_tokens)
    ceiling = Ceiling(int(device.ceiling_gb * 1e9), device.soft_fraction)
    return WorkerSettings(PlannerSettings(sizes), ceiling)


def jobs(long_share: float = 0.0) -> Iterator[Job]:
    """Every model of the profile, with the rows that it gets."""
    profile, chunks = PROFILES[PROFILE], chunk_lengths(long_share)
    queries = np.full(QUERIES, QUERY_TOKENS)
    candidates = np.random.default_rng(1).choice(chunks, QUERIES * RERANK_DEPTH)
    rows = {
        "dense": np.concatenate([chunks, queries]),
        "sparse": np.concatenate([chunks, queries]),
        "rerank": candidates + QUERY_TOKENS,
    }
    kinds: tuple[tuple[ModelKind, tuple[str, ...]], ...] = (
        ("dense", profile.dense), ("sparse", profile.sparse), ("rerank", (profile.rerank,)),
    )  # fmt: skip
    for kind, slugs in kinds:
        for spec in (model_spec(slug, kind) for slug in slugs):
            yield Job(kind, spec, np.minimum(rows[kind], spec.max_tokens))


def planned_rows() -> Iterator[tuple[str, ...]]:
    """The table of a run as it is planned, on one and on two devices; the last row is the sum."""
    totals = [0.0, 0.0]
    for job in jobs():
        one, two = job.planned(1), job.planned(2)
        totals = [totals[0] + one.seconds, totals[1] + two.seconds]
        sides = [(f"{one.seconds:.1f} s", _busy(one, 1), _gb(one.peak_used))]
        sides += [(f"{two.seconds:.1f} s", _busy(two, 2), _gb(two.peak_used))]
        redone = f"{max(one.tally.redone_tokens / one.tally.tokens, two.tally.redone_tokens / two.tally.tokens):.1%}"
        gain = f"{one.seconds / two.seconds:.2f}x"
        yield job.stage, job.spec.slug, f"{len(job.lengths):,}", *sides[0], *sides[1], gain, redone
    yield "all", "", "", f"{totals[0]:.1f} s", "", "", f"{totals[1]:.1f} s", "", "", f"{totals[0] / totals[1]:.2f}x", ""


def fixed_rows() -> Iterator[tuple[str, ...]]:
    """The table of what a fixed batch of 32 does."""
    soft = worker_settings().ceiling.soft_bytes
    for name, long_share in COLLECTIONS.items():
        for job in jobs(long_share):
            fixed = job.fixed()
            yield (
                job.stage,
                job.spec.slug,
                name,
                f"{fixed.largest_tokens:,} tokens",
                _gb(fixed.peaks.max()),
                fixed.outcome,
                f"{fixed.peaks.mean() / soft:.0%}",
                f"{fixed.seconds:.1f} s" if fixed.peaks.max() <= T4_BYTES else "-",
                f"{job.planned(2).seconds:.1f} s",
            )


def markdown(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _busy(report: SimulationReport, devices: int) -> str:
    return f"{report.busy_share(devices):.0%}"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(markdown(PLANNED_COLUMNS, planned_rows()), end="\n\n")
    print(markdown(FIXED_COLUMNS, fixed_rows()))


if __name__ == "__main__":
    main()
