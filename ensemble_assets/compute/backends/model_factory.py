"""Hold a model's spec, files and runtime: the base of the factories of all backends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from ensemble_assets.common.defaults import TOP_K
from ensemble_assets.compute.backends.forward import Forward, OutputSpec, Runtime
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.backends.sparse_output import sparse_outputs
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class ModelFactory:
    """Picklable: names and paths only.

    Attributes:
        spec: a complete spec (see ``library.describe``).
        files: where its weights are.
        runtime: how to run it.
        reason: why this backend runs it.
        traits: how its rows are made and what its modules are.
    """

    backend: ClassVar[str]

    spec: ModelSpec
    files: ModelFiles
    runtime: Runtime = field(default_factory=Runtime)
    reason: str = "reference"
    traits: ModelTraits = field(default_factory=ModelTraits)

    @property
    def identity(self) -> str:
        """Slug, fingerprint, pooling, backend and precision; equal only for factories whose outputs are equal."""
        parts = (self.spec.slug, self.files.fingerprint, self.spec.pooling, self.backend, self.runtime.precision)
        return ":".join(parts)

    @property
    def width(self) -> int:
        """Width of the token states; 0 where the model's files do not say."""
        return self.traits.width

    def prepare(self) -> None:
        """Have the kernel read the weights into its cache; whoever unpickled this has imported its backend."""
        for path in self.files.folder.rglob("*"):
            if path.suffix in _WEIGHTS and path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def unload(self, forward: Forward) -> None:
        """Release a forward that ``load`` made."""
        forward.release()

    def full_precision(self) -> Self:
        """Return a factory of the same model in fp32."""
        return replace(self, runtime=replace(self.runtime, precision="fp32"))


@dataclass(frozen=True)
class SparseModelFactory(ModelFactory):
    """A SPLADE model, whose outputs are those of ``sparse_outputs``.

    Attributes:
        top_k: entries kept per text; 0 keeps all.
    """

    top_k: int = TOP_K

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """See ``sparse_outputs``."""
        return sparse_outputs(self.spec.dimension, self.top_k)

    @property
    def identity(self) -> str:
        """The model's identity with ``top_k``."""
        return f"{super().identity}:{self.top_k}"
