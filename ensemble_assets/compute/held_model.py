"""One lease and one loaded model for several runs of a stage, where what is run next depends on what came before.

On a CPU the model stays loaded between runs. Worker processes on GPUs load it anew for each run and the lease stays;
``reloads`` says so, that a stage can make fewer and larger runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ensemble_assets.compute.context import ComputeContext
from ensemble_assets.compute.engine import EngineResult, HasFullPrecision, HasRelease
from ensemble_assets.compute.lease_shape import Lease
from ensemble_assets.compute.work import Batch, Forward, ForwardFactory, OutputSpec, TokenTable
from ensemble_assets.core.registry import ModelSpec


@dataclass(frozen=True)
class HeldModel:
    """A model on leased devices, for as long as ``hold`` lasts."""

    stage: str
    spec: ModelSpec
    factory: ForwardFactory
    lease: Lease
    context: ComputeContext
    reloads: bool

    def run(self, table: TokenTable, part: str) -> EngineResult:
        """Every row of ``table`` through the model; ``part`` names this run where outputs go to a folder."""
        folder = self.context.folder
        return self.context.runner(
            table,
            self.factory,
            lease=self.lease,
            events=self.context.events,
            folder=folder / self.stage / self.spec.slug / part if folder is not None else None,
        )


@contextmanager
def hold(context: ComputeContext, stage: str, spec: ModelSpec, factory: ForwardFactory) -> Iterator[HeldModel]:
    """Lease devices and, on a CPU, load the model; both are given back when the block ends.

    Raises:
        EnsembleError: what the lease and loading may raise.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    with context.lease(model=spec.slug, stage=stage) as lease:
        if any(device.torch_device != "cpu" for device in lease.devices):
            yield HeldModel(stage, spec, factory, lease, context, reloads=True)
            return
        forward = _KeptForward(factory.load("cpu"))
        kind = _KeptInTwoPrecisions if isinstance(factory, HasFullPrecision) else _KeptFactory
        try:
            yield HeldModel(stage, spec, kind(factory, forward), lease, context, reloads=False)
        finally:
            forward.end()


class _KeptForward:
    """A loaded model that whoever runs a table cannot release: it lacks ``release``, all else is the model's own."""

    def __init__(self, forward: Forward) -> None:
        self._forward: Forward | None = forward
        self.outputs = forward.outputs

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[Any]]:
        assert self._forward is not None, "used after the hold ended"
        return self._forward(table, batch)

    def __getattr__(self, name: str) -> Any:
        if name == "release" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._forward, name)

    def end(self) -> None:
        forward: object = self._forward
        self._forward = None
        if isinstance(forward, HasRelease):
            forward.release()


@dataclass(frozen=True)
class _KeptFactory:
    """Hands out the loaded model instead of loading it again."""

    factory: ForwardFactory
    forward: _KeptForward

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return self.factory.outputs

    @property
    def identity(self) -> str:
        return self.factory.identity

    def load(self, device: str) -> Forward:
        return self.forward


@dataclass(frozen=True)
class _KeptInTwoPrecisions(_KeptFactory):
    """The same for a model that can be made in fp32 too; that one is loaded when rows need it."""

    def full_precision(self) -> ForwardFactory:
        assert isinstance(self.factory, HasFullPrecision)
        return self.factory.full_precision()


def merge_results(parts: list[EngineResult]) -> EngineResult:
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
        largest_batch=max(part.largest_batch for part in parts),
    )
