"""How a model is run, and what its forward takes and gives: the data types and protocols of all backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.spec import ModelSpec

Precision = Literal["auto", "fp32", "bf16", "fp16"]
BackendName = Literal["auto", "torch", "openvino"]


_SAFE_IN_FP16 = {
    *("albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert"),
    *("roberta", "xlm-roberta"),
}
"""Encoders whose activations stay far below 65,504. fp16 is as fast as bf16 and eight times finer."""


def gpu_precision(model_type: str, *, has_bf16: bool) -> Precision:
    """Return the precision that ``auto`` means for an architecture on a GPU."""
    return "bf16" if has_bf16 and model_type not in _SAFE_IN_FP16 else "fp16"


@dataclass(frozen=True)
class Runtime:
    """How a model is run.

    Attributes:
        precision: ``auto`` is the fastest that keeps half a percent of a vector's direction: on CUDA fp16
            for encoders that are safe in it, else bf16 where the device has it in hardware and fp16 where not; on a CPU
            with OpenVINO whichever of bf16 and fp32 was measured to be faster (``cpu_products``), else fp32. Pooling,
            norms and final logits are fp32 always.
        threads: CPU threads of one forward; 0 leaves the backend's own choice.
        backend: ``torch`` is the reference; ``auto`` takes OpenVINO on a CPU where it is installed.
        cache_folder: converted models are kept below it; None keeps none, so that only torch can be used.
        packed: whether torch computes rows without padding where it can; see ``library.packed_rows``.
    """

    precision: Precision = "auto"
    threads: int = 0
    backend: BackendName = "torch"
    cache_folder: Path | None = None
    packed: bool = False


@dataclass(frozen=True)
class OutputSpec:
    """One output of a forward: ``[batch, *shape]`` of ``dtype`` per batch, ``[n, *shape]`` over all rows.

    An output ``per_token`` has no row for each text but one for each of its tokens, text after text.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    per_token: bool = False

    def size(self, table: TokenTable) -> tuple[int, ...]:
        """Return the shape of the output over all rows of a table."""
        return (int(table.offsets[-1]) if self.per_token else len(table), *self.shape)

    def places(self, table: TokenTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of some rows of a table in the output over all of them."""
        return table.token_numbers(rows) if self.per_token else rows


def vector_outputs(dimension: int, traits: ModelTraits) -> Mapping[str, OutputSpec]:
    """Outputs of an encoder: ``vector`` of length 1, and ``norm``, the length it had, where dot products rank."""
    vector = {"vector": OutputSpec((dimension,), "float32")}
    return vector | {"norm": OutputSpec((), "float32")} if traits.similarity == "dot" else vector


def sparse_outputs(dimension: int, top_k: int) -> dict[str, OutputSpec]:
    """Describe the outputs of a SPLADE forward.

    ``index`` ``[batch, top_k] int32`` (unused places -1) with ``weight`` ``[batch, top_k] float32``, by falling weight,
    and ``active`` ``[batch] int32``, the positive weights before pruning. With ``top_k`` 0: ``weight``
    ``[batch, dimension] float32`` and ``active``.
    """
    active = {"active": OutputSpec((), "int32")}
    if top_k == 0:
        return {"weight": OutputSpec((dimension,), "float32"), **active}
    width = min(top_k, dimension)
    return {"index": OutputSpec((width,), "int32"), "weight": OutputSpec((width,), "float32"), **active}


class Forward(Protocol):
    """A model on one device, ready to run.

    Calling it runs one batch and returns host arrays named as in ``ForwardFactory.outputs``, row ``k`` belonging to
    ``batch.rows[k]``. It raises ``DeviceOutOfMemoryError`` if the batch does not fit, and never retries by itself.
    """

    @property
    def precision(self) -> str:
        """Number format that the model computes in."""

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch."""

    def release(self) -> None:
        """Free the weights; the forward is of no use afterwards.

        Networks are in reference cycles: without this call their memory would stay until a garbage collection.
        """


def packing_of(forward: Forward) -> str:
    """Return ``packed`` if a forward computes no padding, what does not allow it, or ``off`` if nobody asked."""
    return str(getattr(forward, "packing", "off"))


class Launched(Protocol):
    """A batch that a device computes."""

    def done(self) -> bool:
        """Whether ``result`` would return at once."""
        ...

    def wait(self) -> None:
        """Wait until it would, in any thread; an error of the device may be raised."""
        ...

    def result(self) -> Mapping[str, NDArray[np.generic]]:
        """Wait for the outputs; errors are those of a forward's call."""
        ...


@runtime_checkable
class StagedForward(Protocol):
    """A forward whose call can be made in parts, so that a device need not wait for the host between two batches."""

    def stage(self, table: TokenTable, batch: Batch) -> Any:
        """Make the batch's inputs on the host, in any thread."""
        ...

    def launch(self, staged: Any) -> Launched:
        """Have the device compute, without waiting for it; errors are those of a forward's call."""
        ...


class ForwardFactory(Protocol):
    """Loads a model onto a device, in the process that calls it. Picklable, so that workers can be handed one."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Known before loading, so that the caller can allocate the result arrays."""

    @property
    def identity(self) -> str:
        """Name of everything that outputs depend on; working batch sizes and rows are remembered under it."""

    @property
    def width(self) -> int:
        """Numbers per token state; 0 if it is unknown."""

    @property
    def spec(self) -> ModelSpec:
        """The model, completed from its files."""

    @property
    def traits(self) -> ModelTraits:
        """How its rows are made and what its modules are."""

    @property
    def backend(self) -> str:
        """``torch`` or ``openvino``."""

    @property
    def reason(self) -> str:
        """Why this backend runs the model, one of ``choice.REASONS``."""

    def prepare(self) -> None:
        """Import what ``load`` needs and have the kernel read the weights ahead, without touching a device."""
        ...

    def load(self, device: str) -> Forward:
        """Load onto ``device`` (``"cpu"``, ``"cuda:0"``).

        Raises:
            ModelUnavailableError: if files or libraries are missing or do not fit together.
        """

    def unload(self, forward: Forward) -> None:
        """Take back a forward that ``load`` made: release it, unless the factory keeps it for the next run."""

    def full_precision(self) -> ForwardFactory | None:
        """Make a factory of the same model in fp32; None if there is none."""
