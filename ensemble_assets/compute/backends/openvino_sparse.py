"""SPLADE with its network in OpenVINO; the output layer is ``sparse_head``'s part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.backends.model_factory import SparseModelFactory
from ensemble_assets.compute.backends.openvino_forwards import Float, OpenVinoFactory, OpenVinoForward
from ensemble_assets.compute.splade_head.head import SparseHead
from ensemble_assets.compute.tokens.padded_arrays import PaddedArrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable


@dataclass(frozen=True)
class OpenVinoSparseFactory(SparseModelFactory, OpenVinoFactory):
    """Makes forwards with the outputs of ``SparseFactory``."""

    def load(self, device: str) -> OpenVinoSparse:
        """Compile for the CPU."""
        return OpenVinoSparse(self, self.outputs, device)


class OpenVinoSparse(OpenVinoForward):
    """A masked language model whose output layer is a ``SparseHead``."""

    def __init__(self, factory: OpenVinoSparseFactory, outputs: Mapping[str, OutputSpec], device: str) -> None:
        super().__init__(factory, outputs, device)
        runtime = factory.runtime
        self._head = SparseHead(*factory.graph.head(), factory.top_k, runtime.threads, runtime.cache_folder)

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch of a table."""
        self._head.expect(int(table.offsets[-1]))
        return super().__call__(table, batch)

    def compute(self, states: Float, arrays: PaddedArrays) -> Mapping[str, NDArray[np.generic]]:
        """Weights by the formula, pruned to the largest."""
        return self._head.of_batch(states, arrays.lengths)
