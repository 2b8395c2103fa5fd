"""How a pass of rows through a model is run, and what comes out of it, whoever runs it. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ensemble_assets.compute.batching.batch_outcome import Finished
from ensemble_assets.compute.batching.dispatcher import Patience
from ensemble_assets.compute.batching.planner import ControllerSettings
from ensemble_assets.compute.batching.size_limits import SizeMemory, SizeSettings
from ensemble_assets.compute.devices.ceiling import Ceiling

DEFAULT_BATCH_TOKENS = 4096
_CPU_BATCH_ROWS = 256


_USUAL_WIDTH = 384
"""Of token states, for which the default batch was measured: what a batch holds in cache grows with it."""


def cpu_batches(batch_tokens: int = DEFAULT_BATCH_TOKENS) -> ControllerSettings:
    """Batches of at most so many padded tokens, however much memory there is: on a CPU larger ones are no faster."""
    return ControllerSettings(SizeSettings(batch_tokens, max_tokens=batch_tokens, max_rows=_CPU_BATCH_ROWS))


def for_width(settings: ControllerSettings, width: int) -> ControllerSettings:
    """The same, or more tokens in a fixed batch of a model with narrow token states; 0 is an unknown width.

    Going from the network to what is done with its states and back costs the same for every batch.
    """
    sizes = settings.sizes
    if sizes.max_tokens is None or width < 1:
        return settings
    tokens = sizes.max_tokens * max(1, _USUAL_WIDTH // width)
    return replace(settings, sizes=replace(sizes, initial_tokens=max(sizes.initial_tokens, tokens), max_tokens=tokens))


@dataclass(frozen=True)
class WorkerSettings:
    """How workers run.

    Attributes:
        controller: how batches are planned.
        ceiling: memory limits of every device.
        patience: how long to wait for what.
        workers_per_device: processes on each device. More than one only pays on CPUs, where they share the ceiling;
            0 computes in this process, on the first device, which must be a CPU.
        load_seconds: a worker that has not loaded its model after so long is given up.
        sampler_seconds: period of the memory sampler.
    """

    controller: ControllerSettings = field(default_factory=ControllerSettings)
    ceiling: Ceiling = field(default_factory=Ceiling)
    patience: Patience = field(default_factory=Patience)
    workers_per_device: int = 1
    load_seconds: float = 900.0
    sampler_seconds: float = 0.05


@dataclass
class PassResult:
    """What one model did to some rows.

    Attributes:
        failed: row -> why.
        not_finite: rows with a NaN or an infinity.
        peak_bytes: most memory in use on any of the devices, all processes counted.
        precision: what was computed in.
        sizes: what was learned about batch sizes.
        largest_batch: rows of the largest batch that worked.
    """

    failed: dict[int, str] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    precision: str = "none"
    sizes: SizeMemory = field(default_factory=SizeMemory)
    largest_batch: int = 0

    def take(self, finished: Finished) -> None:
        """Count one batch in."""
        self.not_finite += finished.not_finite
        self.peak_bytes = max(self.peak_bytes, finished.headroom.used)
