"""Hold one lease and one model for the runs of a stage, where each run may depend on the results before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.events import EventSink
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.run_table import TableRunner, TableSlice
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.tokens.token_tables import TokenTable
from ensemble_assets.models.spec import ModelSpec


class _Run(Protocol):
    def __call__(
        self, table: TokenTable | Iterable[TableSlice], *, rows: NDArray[np.int64] | None = None
    ) -> TableResult:
        """Run every row of ``table``; see ``TableRunner``."""


@dataclass(frozen=True)
class HeldModel:
    """A model on leased devices, until the block of ``hold`` ends.

    ``run`` takes a table and, if it is a part of the stage's table, the numbers of its rows for events. ``round_trips``
    says whether every run goes through the nodes of a cluster, so that fewer and larger runs are faster.
    """

    run: _Run
    events: EventSink
    round_trips: bool


@dataclass(frozen=True)
class HeldDevices:
    """Leased devices and their workers, for one model after another."""

    runner: TableRunner
    lease: Lease
    events: EventSink

    @contextmanager
    def model(self, factory: ForwardFactory) -> Iterator[HeldModel]:
        """Hold a model; in this process it stays loaded from its first use on until the block ends."""
        runner = self.runner.runner
        with runner.loaded(factory) as model:
            # A partial and not a method: one call less between a stage and its model.
            run = partial(self.runner, factory=model, lease=self.lease, events=self.events)
            yield HeldModel(run, self.events, runner.round_trips)


@contextmanager
def hold_devices(context: ComputeContext, stage: str, spec: ModelSpec) -> Iterator[HeldDevices]:
    """Lease devices until the block ends; a failed lease is an ``EnsembleError``. Workers live as long."""
    with (
        context.lease(model=spec.slug, stage=stage) as lease,
        context.runner.holding(lease, context.events) as runner,
    ):
        yield HeldDevices(runner, lease, context.events)


@contextmanager
def hold(context: ComputeContext, stage: str, spec: ModelSpec, factory: ForwardFactory) -> Iterator[HeldModel]:
    """Lease devices until the block ends, for one model.

    A failed lease, device or load is an ``EnsembleError``; weights that do not fit a ``DeviceOutOfMemoryError``.
    """
    with hold_devices(context, stage, spec) as devices, devices.model(factory) as model:
        yield model
