"""Settings of the devices of a machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ensemble_assets.common.defaults import BATCH_TOKENS
from ensemble_assets.compute.batching.dispatcher import Patience
from ensemble_assets.compute.batching.planner import PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling

_CPU_BATCH_ROWS = 256
"""Most rows of a CPU batch. Only rows of up to 16 tokens reach it before ``BATCH_TOKENS``."""

_USUAL_WIDTH = 384
"""Width of the token states for which ``BATCH_TOKENS`` was measured."""


IN_FLIGHT = 2
"""Batches that a worker has at once: one that the device computes, and one that a thread of the worker prepares."""

SLICE_BYTES = 16_000_000
"""Bytes of text of the first slice: 4 to 5 million tokens, which take one core six to eight seconds.

A worker that was started ahead imports its libraries meanwhile, so a smaller one would let few begin sooner. At the end
of each slice devices wait for each other, and rows that are not finite are redone in fp32, for which two models are
loaded. So each is twice as large as the one before."""


def cpu_batches(batch_tokens: int = BATCH_TOKENS) -> PlannerSettings:
    """Plan batches of at most ``batch_tokens`` padded tokens, however much memory there is."""
    return PlannerSettings(SizeSettings(batch_tokens, max_tokens=batch_tokens, max_rows=_CPU_BATCH_ROWS))


def look_further(settings: PlannerSettings) -> PlannerSettings:
    """Plan batches for workers: outcomes come later, and more are lost together, by the batches that are in flight."""
    sizes = replace(settings.sizes, at_once=IN_FLIGHT * settings.sizes.at_once)
    return PlannerSettings(sizes, IN_FLIGHT * settings.lookahead)


def widen_batches(settings: PlannerSettings, width: int) -> PlannerSettings:
    """Let a batch of fixed size hold more tokens of a model with narrow token states; ``width`` 0 if it is unknown.

    A batch's part of the cache grows with the width, and every batch has the same fixed cost. Batches that memory
    limits stay as they are.
    """
    sizes = settings.sizes
    if sizes.max_tokens is None or width < 1:
        return settings
    tokens = sizes.max_tokens * max(1, _USUAL_WIDTH // width)
    wider = replace(sizes, initial_tokens=max(sizes.initial_tokens, tokens), max_tokens=tokens)
    return replace(settings, sizes=wider)


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of the devices of a machine.

    Attributes:
        workers_per_device: processes on each device. More than one only pays on CPUs, where they share the ceiling.
            0 computes in this process, on the first device, which must be a CPU.
        load_seconds: a worker that has not loaded its model after this time is given up.
        freed_seconds: weights that do not fit are tried again for so long: a driver frees the memory of a dead process
            some time after its death.
        sampler_seconds: period of the memory sampler.
        size_history: file of batch sizes that worked before; None remembers nothing.
        work_folder: where workers share arrays; None is the system's temporary folder.
    """

    batches: PlannerSettings = field(default_factory=PlannerSettings)
    ceiling: Ceiling = field(default_factory=Ceiling)
    patience: Patience = field(default_factory=Patience)
    workers_per_device: int = 1
    load_seconds: float = 900.0
    freed_seconds: float = 5.0
    sampler_seconds: float = 0.05
    size_history: Path | None = None
    work_folder: Path | None = None
