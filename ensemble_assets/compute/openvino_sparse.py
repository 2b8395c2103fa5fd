"""SPLADE with its network in OpenVINO and its vocabulary in tiles. The formula is explained in ``forward_sparse``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.openvino_forward import Float, OpenVinoFactory, OpenVinoForward
from ensemble_assets.compute.padded_arrays import PaddedArrays
from ensemble_assets.compute.sparse_rows import DEFAULT_TOP_K, sparse_outputs
from ensemble_assets.compute.work import OutputSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OpenVinoSparseFactory(OpenVinoFactory):
    """Makes forwards with the outputs of ``SparseFactory``."""

    top_k: int = DEFAULT_TOP_K

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """See ``sparse_outputs``."""
        return sparse_outputs(self.spec.dimension, self.top_k)

    @property
    def identity(self) -> str:
        """Pruning included."""
        return f"{super().identity}:{self.top_k}"

    def load(self, device: str) -> OpenVinoSparse:
        """Compile for the CPU."""
        return OpenVinoSparse(self, self.outputs, device)


class OpenVinoSparse(OpenVinoForward):
    """A masked language model whose output layer is applied in tiles."""

    def __init__(self, factory: OpenVinoSparseFactory, outputs: Mapping[str, OutputSpec], device: str) -> None:
        import torch

        super().__init__(factory, outputs, device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[factory.runtime.precision]
        matrix, bias = factory.graph.head()
        self._matrix: torch.Tensor = torch.from_numpy(matrix).to(dtype)
        self._bias: torch.Tensor = torch.from_numpy(bias)
        self._runtime = factory.runtime
        self._top_k = factory.top_k

    def compute(self, states: Float, arrays: PaddedArrays) -> Mapping[str, NDArray[np.generic]]:
        """Weights by the formula, pruned to the largest."""
        import torch

        from ensemble_assets.compute.forward_sparse import largest_logits, pruned
        from ensemble_assets.compute.loading import kernels

        with torch.inference_mode(), kernels(self._runtime, "cpu"):
            tensor = torch.from_numpy(states).to(self._matrix.dtype)
            if arrays.padded:
                # padding repeats the row's first token: a maximum over duplicates is the maximum
                tensor = torch.where(torch.from_numpy(arrays.mask).unsqueeze(2), tensor, tensor[:, :1])
            found = pruned(largest_logits(tensor, self._matrix, self._bias), self._top_k)
            return {name: values.numpy() for name, values in found.items()}
