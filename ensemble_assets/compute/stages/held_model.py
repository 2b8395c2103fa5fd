"""One lease and one loaded model for several runs of a stage, where what is run next depends on what came before.

On a CPU the model stays loaded between runs. Worker processes on GPUs load it anew for each run and the lease stays;
``reloads`` says so, that a stage can make fewer and larger runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.compute_devices import merge_devices
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.running.part_events import PartEvents
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.models.registry import ModelSpec


@dataclass(frozen=True)
class HeldModel:
    """A model on leased devices, for as long as ``hold`` lasts."""

    stage: str
    spec: ModelSpec
    factory: ForwardFactory
    lease: Lease
    context: ComputeContext
    reloads: bool

    def run(self, table: TokenTable, part: str, rows: NDArray[np.int64] | None = None) -> TableResult:
        """Every row of ``table`` through the model.

        Args:
            table: the rows.
            part: names this run where outputs go to a folder.
            rows: their numbers in the stage's whole table, if they are a part of it; events use them.
        """
        folder = self.context.folder
        return self.context.runner(
            table,
            self.factory,
            lease=self.lease,
            events=self.context.events if rows is None else PartEvents(self.context.events, rows),
            folder=folder / self.stage / self.spec.slug / part if folder is not None else None,
        )


@contextmanager
def hold(context: ComputeContext, stage: str, spec: ModelSpec, factory: ForwardFactory) -> Iterator[HeldModel]:
    """Lease devices and, on a CPU, keep the model from its first use on; both are given back when the block ends.

    Raises:
        EnsembleError: what the lease and loading may raise.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    with context.lease(model=spec.slug, stage=stage) as lease:
        if any(device.torch_device != "cpu" for device in lease.devices):
            yield HeldModel(stage, spec, factory, lease, context, reloads=True)
            return
        with loaded_once(factory) as once:
            yield HeldModel(stage, spec, once, lease, context, reloads=False)


def merge_results(parts: list[TableResult]) -> TableResult:
    """What several runs over different rows cost together; outputs and failed rows are the caller's to place.

    Raises:
        ValueError: if there are none.
    """
    if not parts:
        raise ValueError("nothing was run")
    return replace(
        parts[-1],
        outputs={},
        failed_rows={},
        seconds=sum(part.seconds for part in parts),
        tokens=sum(part.tokens for part in parts),
        peak_bytes=max(part.peak_bytes for part in parts),
        precision_redone=sum(part.precision_redone for part in parts),
        distinct_rows=sum(part.distinct_rows for part in parts),
        device=merge_devices(part.device for part in parts),
        largest_batch=max(part.largest_batch for part in parts),
        reused_rows=sum(part.reused_rows for part in parts),
    )
