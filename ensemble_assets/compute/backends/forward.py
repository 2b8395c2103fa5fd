"""How a model is run, and what its forward takes and gives: the data types and protocols of all backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

Precision = Literal["auto", "fp32", "bf16", "fp16"]
BackendName = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True)
class Runtime:
    """How a model is run.

    Attributes:
        precision: ``auto`` is the fastest that keeps half a percent of a vector's direction: bf16 where the device has
            it in hardware (on a CPU: with OpenVINO), fp16 on older CUDA devices, else fp32. Pooling, norms and final
            logits are fp32 always.
        threads: CPU threads of one forward; 0 leaves the backend's own choice.
        backend: ``torch`` is the reference; ``auto`` takes OpenVINO on a CPU where it is installed.
        cache_folder: converted models are kept below it; None keeps none, so that only torch can be used.
    """

    precision: Precision = "auto"
    threads: int = 0
    backend: BackendName = "torch"
    cache_folder: Path | None = None


@dataclass(frozen=True)
class OutputSpec:
    """One output of a forward: ``[batch, *shape]`` of ``dtype`` per batch, ``[n, *shape]`` over all rows."""

    shape: tuple[int, ...]
    dtype: DTypeLike


class Forward(Protocol):
    """A model that sits on one device, ready to run.

    Calling it runs one batch and returns host arrays named as in ``outputs``, row ``k`` belonging to ``batch.rows[k]``.
    It raises ``DeviceOutOfMemoryError`` (and nothing else) when the batch does not fit; it never retries by itself.
    """

    outputs: Mapping[str, OutputSpec]

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch."""
        ...


class ForwardFactory(Protocol):
    """Loads a model onto a device, in the process that calls it. Picklable, so that workers can be handed one.

    Attributes:
        outputs: known before loading, so that the caller can allocate the result arrays.
        identity: model slug, fingerprint and dtype; the key under which working batch sizes are remembered.
    """

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Known before loading."""
        ...

    @property
    def identity(self) -> str:
        """Model slug, fingerprint and dtype."""
        ...

    def load(self, device: str) -> Forward:
        """Load onto ``device`` (``"cpu"``, ``"cuda:0"``).

        Raises:
            ModelUnavailableError: if files or libraries are missing or do not fit together.
        """
        ...


@runtime_checkable
class HasFullPrecision(Protocol):
    """A factory that can make the same model in fp32."""

    def full_precision(self) -> ForwardFactory:
        """The same model in fp32."""
        ...


@runtime_checkable
class HasWidth(Protocol):
    """A factory that knows how wide its model's token states are."""

    @property
    def width(self) -> int:
        """0 where that is not known."""
        ...


@runtime_checkable
class HasRelease(Protocol):
    """A forward that can give its memory back at once: networks are in reference cycles and would wait for a sweep."""

    def release(self) -> None:
        """Drop the weights; the forward is of no use afterwards."""
        ...
