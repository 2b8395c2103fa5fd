"""How a model is run, what makes its forward, and what that takes and gives: the base of all backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_assets.common.errors import ModelUnavailableError, failure_word
from ensemble_assets.compute.backends.model_traits import MAXSIM, ModelTraits
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles, weight_files
from ensemble_assets.models.spec import POOLINGS, ModelSpec

Precision = Literal["auto", "fp32", "bf16", "fp16"]
BackendName = Literal["auto", "torch", "openvino"]
States = Literal["", "beside", "alone"]

SMALLEST_NORM = 1e-12
"""A vector is divided by no less; the value of ``torch.nn.functional.normalize``."""

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
        streams: parts of a batch that OpenVINO computes side by side; they share the threads.
        packed: whether torch computes rows without padding where it can; see ``library.packed_rows``.
    """

    precision: Precision = "auto"
    threads: int = 0
    backend: BackendName = "torch"
    cache_folder: Path | None = None
    packed: bool = False
    streams: int = 1


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


def state_outputs(width: int, kind: DTypeLike = "int8") -> Mapping[str, OutputSpec]:
    """Describe the outputs: ``state`` ``[width]`` of ``kind`` and ``state_scale`` ``float32`` for every token."""
    return {
        STATE: OutputSpec((width,), kind, per_token=True),
        SCALE: OutputSpec((), "float32", per_token=True),
    }


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


@runtime_checkable
class StagedForward(Protocol):
    """A forward whose call can be made in parts, so that a device need not wait for the host between two batches."""

    def stage(self, table: TokenTable, batch: Batch) -> Any:
        """Make the batch's inputs on the host, in any thread."""

    def launch(self, staged: Any) -> Any:
        """Have the device compute, without waiting for it.

        Return what has ``done``, whether ``result`` would return at once, ``wait``, which waits until it would, in any
        thread, and ``result``, the outputs. Errors are those of a forward's call.
        """


@dataclass(frozen=True)
class ForwardFactory:
    """Loads a model onto a device, in the process that calls it. Picklable, so that workers can be handed one.

    Attributes:
        spec: a complete spec (see ``library.describe``).
        files: where its weights are.
        runtime: how to run it.
        reason: why this backend runs it, one of ``choice.REASONS``.
        traits: how its rows are made and what its modules are.
        top_k: entries kept of a sparse vector; 0 keeps all.
        states: whether an encoder gives the states of its tokens, ``beside`` its vectors or ``alone``.
    """

    backend: ClassVar[str]
    """``torch`` or ``openvino``."""

    spec: ModelSpec
    files: ModelFiles
    runtime: Runtime = field(default_factory=Runtime)
    reason: str = "reference"
    traits: ModelTraits = field(default_factory=ModelTraits)
    top_k: int = 0
    states: States = field(default="", kw_only=True)

    @property
    def identity(self) -> str:
        """Name everything that outputs depend on; working batch sizes and rows are remembered under it."""
        spec = self.spec
        parts = (spec.slug, self.files.fingerprint, spec.pooling, self.backend, self.runtime.precision)
        packed = ("packed",) if self.runtime.packed else ()
        return ":".join(map(str, (*parts, spec.dimension, self.top_k, *packed)))

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Outputs by kind of model, known before loading, so that the caller can allocate the result arrays.

        Of an encoder: ``vector`` of length 1, and ``norm``, the length it had, where dot products rank.
        """
        spec = self.spec
        if spec.kind == "rerank":
            return {"logit": OutputSpec((), "float32")}
        if spec.kind == "sparse":
            return sparse_outputs(spec.dimension, self.top_k)
        kind = "float16" if self.traits.similarity in MAXSIM else "int8"
        made = state_outputs(self.width, kind) if self.states else {}
        if self.states == "alone":
            return made
        norm = {"norm": OutputSpec((), "float32")} if self.traits.similarity == "dot" else {}
        return {"vector": OutputSpec((spec.dimension,), "float32"), **norm, **made}

    @property
    def width(self) -> int:
        """Width of the token states; 0 where the model's files do not say."""
        return self.traits.head or self.traits.width

    def prepare(self) -> None:
        """Have the kernel read the weights into its cache; whoever unpickled this has imported its backend."""
        if not hasattr(os, "posix_fadvise"):
            return  # as on macOS, where loading is as slow as it is
        for path in weight_files(self.files.folder):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def load(self, device: str) -> Forward:
        """Load onto ``device`` (``"cpu"``, ``"cuda:0"``); ``ModelUnavailableError`` if something is missing for it."""
        raise NotImplementedError

    def unload(self, forward: Forward) -> None:
        """Take back a forward that ``load`` made: release it, unless the factory keeps it for the next run."""
        forward.release()

    def full_precision(self) -> Self | None:
        """Make a factory of the same model in fp32; None if there is none."""
        return replace(self, runtime=replace(self.runtime, precision="fp32"))


def with_states(factory: ForwardFactory, states: States) -> ForwardFactory | None:
    """Make a factory of the same encoder that gives its token states; None where they cannot be compared by token.

    They can for one transformer of known width whose texts the shared tokeniser takes apart.
    """
    wanted, given = state_outputs(0).keys(), factory.outputs.keys()
    if given == wanted if states == "alone" else given > wanted:
        return factory
    traits = factory.traits
    fits = traits.body in POOLINGS["dense"] and traits.tokens == "fast" and traits.width > 0
    return replace(factory, states=states) if fits and isinstance(factory, ForwardFactory) else None


def states_alone(factory: ForwardFactory) -> ForwardFactory:
    """Make a factory that gives nothing but token states; ``ModelUnavailableError`` where they cannot be compared."""
    encoder = with_states(factory, "alone")
    if encoder is None:
        raise ModelUnavailableError(
            f"{factory.spec.slug}: late interaction needs an encoder that is one transformer. Choose another model"
        )
    return encoder


def without_packing(factory: ForwardFactory) -> ForwardFactory:
    """Make a factory of the same model that computes padded rows."""
    if not isinstance(factory, ForwardFactory) or not factory.runtime.packed:
        return factory
    return replace(factory, runtime=replace(factory.runtime, packed=False))


def failure_of_batch(slug: str, error: Exception, batch: Batch, *, out_of_memory: bool) -> Exception:
    """Make the error that a forward raises instead of a backend's own, whose message may quote its input."""
    if out_of_memory:
        return DeviceOutOfMemoryError(f"{slug}: {batch.size} rows of up to {batch.longest} tokens do not fit")
    return ModelFailedError(slug, failure_word(error), batch.size, batch.longest)
