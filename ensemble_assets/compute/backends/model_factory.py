"""Hold a model's spec, files and runtime: the base of the factories of all backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from ensemble_assets.common.errors import failure_word
from ensemble_assets.compute.backends.forward import (
    Forward,
    ForwardFactory,
    OutputSpec,
    Runtime,
    sparse_outputs,
    vector_outputs,
)
from ensemble_assets.compute.backends.late_interaction import SCORES
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.backends.token_states import state_outputs
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.token_tables import Batch
from ensemble_assets.models.model_files import ModelFiles, weight_files
from ensemble_assets.models.spec import POOLINGS, ModelSpec

SMALLEST_NORM = 1e-12
"""A vector is divided by no less; the value of ``torch.nn.functional.normalize``."""


States = Literal["", "beside", "alone"]


def with_states(factory: ForwardFactory, states: States) -> ForwardFactory | None:
    """Make a factory of the same encoder that gives its token states; None where they cannot be compared by token.

    They can for one transformer of known width whose texts the shared tokeniser takes apart.
    """
    wanted, given = state_outputs(0).keys(), factory.outputs.keys()
    if given == wanted if states == "alone" else given > wanted:
        return factory
    traits = factory.traits
    fits = traits.body in POOLINGS["dense"] and traits.tokens == "fast" and traits.width > 0
    return replace(factory, states=states) if fits and isinstance(factory, ModelFactory) else None


def without_packing(factory: ForwardFactory) -> ForwardFactory:
    """Make a factory of the same model that computes padded rows."""
    if not isinstance(factory, ModelFactory) or not factory.runtime.packed:
        return factory
    return replace(factory, runtime=replace(factory.runtime, packed=False))


@dataclass(frozen=True)
class ModelFactory:
    """Picklable: names and paths only.

    Attributes:
        spec: a complete spec (see ``library.describe``).
        files: where its weights are.
        runtime: how to run it.
        reason: why this backend runs it.
        traits: how its rows are made and what its modules are.
        top_k: entries kept of a sparse vector; 0 keeps all.
        states: whether an encoder gives the states of its tokens, ``beside`` its vectors or ``alone``.
    """

    backend: ClassVar[str]

    spec: ModelSpec
    files: ModelFiles
    runtime: Runtime = field(default_factory=Runtime)
    reason: str = "reference"
    traits: ModelTraits = field(default_factory=ModelTraits)
    top_k: int = 0
    states: States = field(default="", kw_only=True)

    @property
    def identity(self) -> str:
        """Name everything that outputs depend on; equal only for factories whose outputs are equal."""
        spec = self.spec
        parts = (spec.slug, self.files.fingerprint, spec.pooling, self.backend, self.runtime.precision)
        packed = ("packed",) if self.runtime.packed else ()
        return ":".join(map(str, (*parts, spec.dimension, self.top_k, *packed)))

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Outputs by kind of model."""
        spec = self.spec
        if spec.kind == "rerank" or spec.pooling == "late_interaction":
            return SCORES
        if spec.kind == "sparse":
            return sparse_outputs(spec.dimension, self.top_k)
        vectors = {} if self.states == "alone" else vector_outputs(spec.dimension, self.traits)
        return {**vectors, **(state_outputs(self.width) if self.states else {})}

    @property
    def width(self) -> int:
        """Width of the token states; 0 where the model's files do not say."""
        return self.traits.width

    def prepare(self) -> None:
        """Have the kernel read the weights into its cache; whoever unpickled this has imported its backend."""
        if not hasattr(os, "posix_fadvise"):
            return  # as on macOS, where loading is as slow as it is
        for path in weight_files(self.files.folder):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def load(self, device: str) -> Forward:
        """Load the model onto ``device``."""
        raise NotImplementedError

    def unload(self, forward: Forward) -> None:
        """Release a forward that ``load`` made."""
        forward.release()

    def full_precision(self) -> Self:
        """Return a factory of the same model in fp32."""
        return replace(self, runtime=replace(self.runtime, precision="fp32"))


def failure_of_batch(slug: str, error: Exception, batch: Batch, *, out_of_memory: bool) -> Exception:
    """Make the error that a forward raises instead of a backend's own, whose message may quote its input."""
    if out_of_memory:
        return DeviceOutOfMemoryError(f"{slug}: {batch.size} rows of up to {batch.longest} tokens do not fit")
    return ModelFailedError(slug, failure_word(error), batch.size, batch.longest)
