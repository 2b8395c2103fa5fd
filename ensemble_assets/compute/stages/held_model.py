"""Hold one lease and one model for the runs of a stage, where each run may depend on the results before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.models.registry import ModelSpec


class _Run(Protocol):
    def __call__(self, table: TokenTable, *, rows: NDArray[np.int64] | None = None) -> TableResult:
        """Run every row of ``table``; see ``TableRunner``."""
        ...


@dataclass(frozen=True)
class HeldModel:
    """A model on leased devices, until the block of ``hold`` ends.

    Attributes:
        run: runs a table of rows. ``rows`` are their numbers in the stage's table if it is a part of that; events use
            them.
        events: where the stage reports.
        reloads: whether workers load the model anew for every run, so that fewer and larger runs are faster.
    """

    run: _Run
    events: EventSink
    reloads: bool


@contextmanager
def hold(context: ComputeContext, stage: str, spec: ModelSpec, factory: ForwardFactory) -> Iterator[HeldModel]:
    """Lease devices until the block ends. In this process, the model stays loaded from its first use on.

    Args:
        context: the stage's tools.
        stage: ``dense``, ``sparse`` or ``rerank``, for the lease.
        spec: the model, for the lease.
        factory: loads the model.

    Raises:
        EnsembleError: if the lease, loading or a device fails.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    here = context.runner.loads_here
    with (
        context.lease(model=spec.slug, stage=stage) as lease,
        loaded_once(factory) if here else nullcontext(factory) as model,
    ):
        # A partial and not a method: one call less between a stage and its model.
        run = partial(context.runner, factory=model, lease=lease, events=context.events)
        yield HeldModel(run, context.events, reloads=not here)
