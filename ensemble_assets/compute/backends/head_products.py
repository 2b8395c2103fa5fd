"""Compute the products of a sparse head with OpenVINO: the largest of every term over a text's tokens, rounded.

``splade_head`` rules terms out by them where a text is not screened. On matrix units they may beat the screen.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.compute.backends.cpu_products import SHAPE_STEP, compile_settings
from ensemble_assets.compute.backends.forward import Precision
from ensemble_assets.compute.backends.openvino_graph import import_openvino

_TILE = 2048
"""Terms of one product: with 256 tokens 1 MiB in bfloat16, which a core's own cache holds. 30,522 at once take 1.5
times as long (AMD EPYC)."""

_BFLOAT16 = 2.0**-8
"""Relative error of a number cut to bfloat16. Rounding makes half of it; which one a processor does is left open."""


class HeadProducts:
    """The products of a matrix ``[V, H] float32`` with a text's states; several threads may call it.

    Attributes:
        error: the largest error of a product, as a part of the product of the two norms. In bfloat16 both factors and
            the result are rounded, in float32 every addition (Higham 2002, section 3.5).
    """

    def __init__(self, matrix: NDArray[np.float32], precision: Precision, threads: int) -> None:
        sums = 1.01 * (matrix.shape[1] + 2) * 2.0**-24
        self.error = sums + (3.1 * _BFLOAT16 if precision == "bf16" else 0.0)
        operations = import_openvino("openvino.opset13")
        states = operations.parameter([-1, matrix.shape[1]], np.float32)
        tokens = operations.constant(np.array([0]))
        tiles = [matrix[left : left + _TILE] for left in range(0, len(matrix), _TILE)]
        largest = [operations.reduce_max(operations.matmul(states, tile, False, True), tokens) for tile in tiles]
        model = import_openvino().Model([operations.concat(largest, 0)], [states])
        network = import_openvino().Core().compile_model(model, "CPU", compile_settings(precision, threads, threads))
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(network.create_infer_request())

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the largest product of every term with any of the states ``[T, H]``: ``[V]``."""
        filled = np.concatenate([states, np.repeat(states[-1:], -len(states) % SHAPE_STEP, axis=0)])
        request = self._requests.get()
        try:
            request.infer([filled], share_inputs=True)
            return np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            self._requests.put(request)
