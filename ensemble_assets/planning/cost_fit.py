"""From observed costs to predicted ones: ``seconds = fixed + work / rate``, and the run that a plan expects.

Pure arithmetic. Observing is ``orchestration.calibration``'s part, counting work ``orchestration.planning``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.stage_times import StageSeconds
from ensemble_assets.compute.stages.rerank_depth import Against, rerank_allowance
from ensemble_assets.planning.cost_records import Observation


@dataclass(frozen=True)
class StageCost:
    """What a stage costs: seconds that do not depend on the work (loading), and seconds per unit of work."""

    fixed: float
    per_work: float

    def seconds(self, work: float) -> float:
        """Predicted wall seconds; none where there is no work."""
        return self.fixed + self.per_work * work if work > 0 else 0.0


def fit(observations: Sequence[Observation]) -> StageCost:
    """Non-negative least squares of relative errors, so that short observations count as much as long ones.

    A single observation is taken as proportional to its work. Where whole runs were observed, the last of them counts
    as much as all else together: it is the real thing.

    Raises:
        ValueError: if there are none.
    """
    from scipy.optimize import nnls

    seen = [one for one in observations if one.work > 0 and one.seconds > 0]
    if not seen:
        raise ValueError("nothing was observed")
    runs = [one for one in seen if one.origin == "run"]
    work, seconds = np.array([[one.work, one.seconds] for one in seen]).T
    weight = np.ones(len(seen))
    if runs:
        weight[max(at for at, one in enumerate(seen) if one.origin == "run")] = np.sqrt(len(seen))
    if len(set(work.tolist())) == 1:
        return StageCost(0.0, float(np.average(seconds / work, weights=weight)))
    columns = np.stack([np.ones(len(seen)), work / work.max()], axis=1) / seconds[:, None]
    (fixed, slope), _ = nnls(columns * weight[:, None], weight)
    return StageCost(float(fixed), float(slope / work.max()))


@dataclass(frozen=True)
class PlannedWork:
    """How much there is to do, in each stage's unit.

    Attributes:
        rerank: ``[depth + 1] float64``, operations of all pairs down to rank d at place d.
    """

    dense: float
    sparse: float
    fusion: float
    rerank: NDArray[np.float64]
    export: float


@dataclass(frozen=True)
class PlannedBudget:
    """What limits rerank; see ``latency_budget.rerank_allowance``."""

    against: Against
    share: float
    floor: int
    plain_dense: float | None


@dataclass(frozen=True)
class Plan:
    """What a run is expected to take.

    Attributes:
        seconds: with rerank at the depth that the governor will reach.
        depth: that depth.
        full: with rerank at the depth that was asked for.
        requested: that one.
        deepest: by ratio (``vs_sla``, ``vs_own_dense``) the largest depth at which it is within its limit; 0 where it
            is at none.
    """

    seconds: StageSeconds
    depth: int
    full: StageSeconds
    requested: int
    deepest: dict[str, int]


def plan(work: PlannedWork, costs: dict[str, StageCost], budget: PlannedBudget) -> Plan:
    """Predict a run: what every stage takes, and how deep rerank gets.

    Args:
        work: to do.
        costs: by stage: dense, sparse, fusion, rerank, export.
        budget: what limits rerank.
    """
    before = StageSeconds(
        dense=costs["dense"].seconds(work.dense),
        sparse=costs["sparse"].seconds(work.sparse),
        fusion=costs["fusion"].seconds(work.fusion),
        export=costs["export"].seconds(work.export),
    )
    by_depth = [costs["rerank"].seconds(float(one)) for one in work.rerank]
    requested = len(by_depth) - 1
    allowance = rerank_allowance(budget.against, budget.share, budget.floor, before, budget.plain_dense)
    depth = requested
    if allowance.seconds is not None:
        fits = [d for d, seconds in enumerate(by_depth) if seconds <= allowance.seconds]
        depth = min(requested, max(budget.floor, *fits, 0))
    runs = [replace(before, rerank=seconds) for seconds in by_depth]
    limit = 1 + budget.share
    ratios = {"vs_own_dense": [run.vs_own_dense() for run in runs]}
    if budget.plain_dense is not None:
        ratios["vs_sla"] = [run.vs_sla(budget.plain_dense) for run in runs]
    deepest = {
        name: max((d for d, ratio in enumerate(found) if ratio is not None and ratio <= limit), default=0)
        for name, found in ratios.items()
    }
    return Plan(runs[depth], depth, runs[requested], requested, deepest)
