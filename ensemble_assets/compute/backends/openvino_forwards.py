"""Run a converted network on the CPU with OpenVINO. The library's modules are the reference.

The graph's matrix products may be in bfloat16. Pooling, norms, vocabulary and classification heads are computed outside
of it, in float32. ``openvino_graph`` makes the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError
from ensemble_assets.compute.backends.forward import Forward, Precision, Runtime
from ensemble_assets.compute.backends.late_interaction import LateInteractionForward
from ensemble_assets.compute.backends.model_factory import SMALLEST_NORM, ModelFactory, failure_of_batch
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.backends.openvino_graph import Graph, graph_for, import_openvino
from ensemble_assets.compute.backends.token_states import quantise
from ensemble_assets.compute.splade_head.head import SparseHead
from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "Cannot allocate memory")
"""Words in OpenVINO's messages when memory runs out: it raises a RuntimeError for everything."""

Float = NDArray[np.float32]
Mask = NDArray[np.int64]
"""``[batch, longest]``, 1 on tokens, which come before the padding."""
Outputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class OpenVinoFactory(ModelFactory):
    """A model for OpenVINO on the CPU; its precision is ``fp32`` or ``bf16``.

    Attributes:
        graph: its network.
    """

    backend = "openvino"

    graph: Graph = field(kw_only=True)

    @classmethod
    def converted(
        cls, spec: ModelSpec, files: ModelFiles, runtime: Runtime, reason: str, traits: ModelTraits, top_k: int = 0
    ) -> Self:
        """Make a factory; convert the model's network if this machine has no graph of it yet.

        Raises:
            ModelUnavailableError: if it cannot be converted.
        """
        assert runtime.cache_folder is not None
        graph = graph_for(spec, files, traits.layouts["document"], runtime.cache_folder)
        return cls(spec, files, runtime, reason, traits, top_k, graph=graph)

    def load(self, device: str) -> Forward:
        """Compile for the CPU."""
        forward = OpenVinoForward(self, device)
        return LateInteractionForward(forward) if self.spec.pooling == "late_interaction" else forward


class OpenVinoForward:
    """A model's graph, and what makes outputs of its states."""

    def __init__(self, factory: OpenVinoFactory, device: str) -> None:
        if device != "cpu":
            raise DeviceError(f"{factory.spec.slug}: OpenVINO runs on the CPU here, not on {device}")
        self.precision: Precision = factory.runtime.precision
        self._slug = factory.spec.slug
        self._graph = factory.graph
        self._head: SparseHead | None = None
        if factory.spec.kind == "sparse":
            runtime = factory.runtime
            self._head = SparseHead(*factory.graph.head(), factory.top_k, runtime.threads, runtime.cache_folder)
        self._finish = _finish_of(factory, self._head)
        self._request: Any = _compiled(factory).create_infer_request()

    def __call__(self, table: TokenTable, batch: Batch) -> Outputs:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
            ModelFailedError: for anything else the backend raises; carries no text.
        """
        if self._head is not None:
            self._head.expect_tokens(int(table.offsets[-1]))
        arrays = padded_arrays(table, batch, self._graph.layout)
        try:
            states = self._request.infer(
                dict(enumerate(arrays[name] for name in self._graph.inputs)), share_inputs=True, share_outputs=True
            )[0]
            return self._finish(np.asarray(states, np.float32), arrays["attention_mask"])
        except Exception as error:  # noqa: BLE001  # a backend's message may quote its input
            full = isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)
            failure = failure_of_batch(self._slug, error, batch, out_of_memory=full)
        raise failure  # outside the handler, so that the original exception is not attached

    def release(self) -> None:
        """Drop the compiled network; the forward is of no use afterwards."""
        self._request = None


def _compiled(factory: OpenVinoFactory) -> Any:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[factory.runtime.precision],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several runs may share the machine
    }
    if factory.runtime.threads:
        settings["INFERENCE_NUM_THREADS"] = factory.runtime.threads
    try:
        return import_openvino().Core().compile_model(str(factory.graph.path), "CPU", settings)
    except RuntimeError as error:
        raise ModelUnavailableError(
            f"{factory.spec.slug}: OpenVINO could not compile its graph. Remove {factory.graph.folder.name} from the "
            "cache folder, or set encoding.backend=torch"
        ) from error


def _finish_of(factory: OpenVinoFactory, head: SparseHead | None) -> Callable[[Float, Mask], Outputs]:
    """Choose what makes a batch's outputs from the network's float32 states ``[batch, longest, width]``."""
    if head is not None:
        return lambda states, mask: head.encode_batch(states, mask.sum(axis=1))
    pooling = factory.spec.pooling
    if pooling == "late_interaction":
        return lambda states, mask: {"states": _unit(states)[0].astype(np.float16)}
    if pooling == "cross_encoder":
        matrix, bias = factory.graph.head()  # in float32, since half-precision logits tie
        return lambda states, mask: {"logit": (states @ matrix.T + bias)[:, 0].astype(np.float32)}

    def unit_vectors(states: Float, mask: Mask) -> Outputs:
        vectors, norms = _unit(POOLINGS[pooling](states, mask))
        return {"vector": vectors} | ({"norm": norms} if "norm" in factory.outputs else {})

    if not factory.states:
        return unit_vectors
    alone = factory.states == "alone"
    return lambda states, mask: {**({} if alone else unit_vectors(states, mask)), **quantise(states, mask > 0)}


def _unit(vectors: Float) -> tuple[Float, Float]:
    """Divide vectors along the last axis by their lengths; return them and the lengths."""
    norms: Any = np.sqrt(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float32))
    return vectors / np.maximum(norms, SMALLEST_NORM)[..., None], norms


def _mean(states: Float, mask: Mask) -> Float:
    weights = mask.astype(np.float32)
    pooled: Float = np.matmul(weights[:, None, :], states)[:, 0] / weights.sum(axis=1, keepdims=True)
    return pooled


def _first(states: Float, mask: Mask) -> Float:
    return states[:, 0].copy()


def _last(states: Float, mask: Mask) -> Float:
    last: Float = states[np.arange(len(states)), mask.sum(axis=1) - 1]
    return last


POOLINGS = {"mean": _mean, "cls": _first, "last_token": _last}
