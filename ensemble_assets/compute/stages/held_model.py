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
from ensemble_assets.models.spec import ModelSpec


class _Run(Protocol):
    def __call__(self, table: TokenTable, *, rows: NDArray[np.int64] | None = None) -> TableResult:
        """Run every row of ``table``; see ``TableRunner``."""
        ...


@dataclass(frozen=True)
class HeldModel:
    """A model on leased devices, until the block of ``hold`` ends.

    ``run`` takes a table and, if it is a part of the stage's table, the numbers of its rows for events. ``reloads``
    says whether workers load the model anew for every run, so that fewer and larger runs are faster.
    """

    run: _Run
    events: EventSink
    reloads: bool


@contextmanager
def hold(context: ComputeContext, stage: str, spec: ModelSpec, factory: ForwardFactory) -> Iterator[HeldModel]:
    """Lease devices until the block ends. In this process, the model stays loaded from its first use on.

    A failed lease, device or load is an ``EnsembleError``; weights that do not fit a ``DeviceOutOfMemoryError``.
    """
    here = context.runner.loads_here
    with (
        context.lease(model=spec.slug, stage=stage) as lease,
        loaded_once(factory) if here else nullcontext(factory) as model,
    ):
        # A partial and not a method: one call less between a stage and its model.
        run = partial(context.runner, factory=model, lease=lease, events=context.events)
        yield HeldModel(run, context.events, reloads=not here)
