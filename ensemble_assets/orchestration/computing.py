"""What a stage computes with, as the settings say. Imports the compute part only when a step asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ensemble_assets.orchestration.stage_run import StageRun

if TYPE_CHECKING:
    from ensemble_assets.compute.context import ComputeContext
    from ensemble_assets.compute.loading import Precision


def compute_context(run: StageRun) -> ComputeContext:
    """Devices, precision, threads and the event sink of this stage."""
    from ensemble_assets.compute.context import ComputeContext
    from ensemble_assets.compute.loading import Runtime

    device = run.settings.device
    return ComputeContext(
        runtime=Runtime(precision=cast("Precision", device.precision), threads=device.threads),
        batch_tokens=device.batch_tokens,
        events=run.events,
    )
