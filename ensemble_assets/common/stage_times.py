"""Add up the seconds of one run, and compute the two ratios of the latency budget.

``vs_sla`` compares the whole run with the dense-only time of the plain script (``artefacts/latency_baseline``).
``vs_own_dense`` compares dense, sparse, fusion and rerank with the dense stage of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemble_assets.common.stages import TIMED_STAGES

BUDGET_SHARE = 0.1
"""Share of the dense-only ensemble's time that sparse, fusion and rerank may add."""

LIMIT_RATIO = 1 + BUDGET_SHARE
"""Largest accepted ratio of a whole run to the dense-only ensemble."""


@dataclass(frozen=True)
class StageSeconds:
    """Wall seconds of the stages of one run; ``export`` is an estimate until the export has run."""

    dense: float
    sparse: float = 0.0
    fusion: float = 0.0
    rerank: float = 0.0
    export: float = 0.0

    @classmethod
    def from_stages(cls, seconds: Mapping[str, float]) -> StageSeconds:
        """Read seconds by stage; a stage that is missing took none, other names are left out."""
        return cls(**{stage: float(seconds.get(stage, 0.0)) for stage in TIMED_STAGES})

    @property
    def ranking(self) -> float:
        """Dense, sparse, fusion and rerank."""
        return self.dense + self.sparse + self.fusion + self.rerank

    @property
    def total(self) -> float:
        """The whole default-on run."""
        return self.ranking + self.export

    def vs_own_dense(self) -> float | None:
        """Return (dense + sparse + fusion + rerank) / dense; None if dense took no time."""
        return self.ranking / self.dense if self.dense > 0 else None

    def vs_sla(self, plain_dense: float | None) -> float | None:
        """Return whole run / dense-only time of the plain script; None if the script was not measured."""
        return self.total / plain_dense if plain_dense else None
