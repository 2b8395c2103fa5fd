"""Run a converted network on the CPU with OpenVINO. The library's modules are the reference.

The graph's matrix products may be in bfloat16. Pooling, norms, vocabulary and classification heads are computed outside
of it, in float32. ``openvino_graph`` makes the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError, failure_word
from ensemble_assets.compute.backends.forward import OutputSpec, Precision, vector_outputs
from ensemble_assets.compute.backends.late_interaction import SCORES, STATES, LateInteractionForward
from ensemble_assets.compute.backends.model_factory import ModelFactory, SparseModelFactory
from ensemble_assets.compute.backends.openvino_graph import Graph, import_openvino
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.splade_head.head import SparseHead
from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "Cannot allocate memory")
"""Words in OpenVINO's messages when memory runs out: it raises a RuntimeError for everything."""

Float = NDArray[np.float32]
Mask = NDArray[np.int64]
"""``[batch, longest]``, 1 on tokens, which come before the padding."""


@dataclass(frozen=True)
class OpenVinoFactory(ModelFactory):
    """A model for OpenVINO on the CPU; its precision is ``fp32`` or ``bf16``.

    Attributes:
        graph: its network.
    """

    backend = "openvino"

    graph: Graph = field(kw_only=True)


class OpenVinoForward:
    """Base of the OpenVINO forwards. Subclasses turn a batch's states into outputs in ``compute``."""

    outputs: Mapping[str, OutputSpec]

    def __init__(self, factory: OpenVinoFactory, outputs: Mapping[str, OutputSpec], device: str) -> None:
        if device != "cpu":
            raise DeviceError(f"{factory.spec.slug}: OpenVINO runs on the CPU here, not on {device}")
        self.outputs = outputs
        self.precision: Precision = factory.runtime.precision
        self._slug = factory.spec.slug
        self._graph = factory.graph
        self._request: Any = _compiled(factory).create_infer_request()

    def compute(self, states: Float, mask: Mask) -> Mapping[str, NDArray[np.generic]]:
        """Compute the outputs of one batch from the network's float32 states ``[batch, longest, width]``."""
        raise NotImplementedError

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
            ModelFailedError: for anything else the backend raises; carries no text.
        """
        arrays = padded_arrays(table, batch, self._graph.layout)
        try:
            outputs = self._request.infer(
                dict(enumerate(arrays[name] for name in self._graph.inputs)), share_inputs=True, share_outputs=True
            )
            return self.compute(np.asarray(outputs[0], np.float32), arrays["attention_mask"])
        except Exception as error:  # noqa: BLE001  # a backend's message may quote its input
            failure = self._translated(error, batch)
        raise failure  # outside the handler, so that the original exception is not attached

    def release(self) -> None:
        """Drop the compiled network; the forward is of no use afterwards."""
        self._request = None

    def _translated(self, error: Exception, batch: Batch) -> Exception:
        if isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY):
            return DeviceOutOfMemoryError(f"{self._slug}: {batch.size} rows of up to {batch.longest} tokens do not fit")
        return ModelFailedError(self._slug, failure_word(error), batch.size, batch.longest)


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


@dataclass(frozen=True)
class OpenVinoDenseFactory(OpenVinoFactory):
    """Makes forwards of encoders; see ``vector_outputs``."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One unit vector per text, and its norm where dot products rank."""
        return vector_outputs(self.spec.dimension, self.traits)

    def load(self, device: str) -> OpenVinoDense:
        """Compile for the CPU."""
        return OpenVinoDense(self, self.outputs, device)


class OpenVinoDense(OpenVinoForward):
    """An encoder."""

    def __init__(self, factory: OpenVinoDenseFactory, outputs: Mapping[str, OutputSpec], device: str) -> None:
        super().__init__(factory, outputs, device)
        self._pool = POOLINGS[factory.spec.pooling]

    def compute(self, states: Float, mask: Mask) -> Mapping[str, NDArray[np.generic]]:
        """Pool and normalise the states."""
        pooled = self._pool(states, mask)
        norms = np.sqrt(np.einsum("ij,ij->i", pooled, pooled, dtype=np.float32))
        unit = {"vector": pooled / np.maximum(norms, 1e-12)[:, None]}
        return unit | {"norm": norms} if "norm" in self.outputs else unit


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


@dataclass(frozen=True)
class OpenVinoLateInteractionFactory(OpenVinoFactory):
    """Makes forwards with one output, ``logit`` ``[batch] float32``, 0 to 1."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One score per pair."""
        return SCORES

    def load(self, device: str) -> LateInteractionForward:
        """Compile for the CPU."""
        return LateInteractionForward(OpenVinoStates(self, STATES, device))


class OpenVinoStates(OpenVinoForward):
    """An encoder that gives the states of all tokens; those of padding have no meaning."""

    def compute(self, states: Float, mask: Mask) -> Mapping[str, NDArray[np.generic]]:
        """Normalise every state in float32."""
        norms = np.sqrt(np.einsum("ijk,ijk->ij", states, states, dtype=np.float32))
        return {"states": (states / np.maximum(norms, 1e-12)[:, :, None]).astype(np.float16)}


@dataclass(frozen=True)
class OpenVinoRerankFactory(OpenVinoFactory):
    """Makes forwards with one output, ``logit`` ``[batch] float32``."""

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """One logit per pair."""
        return SCORES

    def load(self, device: str) -> OpenVinoRerank:
        """Compile for the CPU."""
        return OpenVinoRerank(self, self.outputs, device)


class OpenVinoRerank(OpenVinoForward):
    """A CrossEncoder whose last linear layer is applied in float32, since half-precision logits tie."""

    def __init__(self, factory: OpenVinoRerankFactory, outputs: Mapping[str, OutputSpec], device: str) -> None:
        super().__init__(factory, outputs, device)
        self._matrix, self._bias = factory.graph.head()

    def compute(self, states: Float, mask: Mask) -> Mapping[str, NDArray[np.generic]]:
        """Compute the single label's logit, before any activation."""
        return {"logit": (states @ self._matrix.T + self._bias)[:, 0].astype(np.float32)}


@dataclass(frozen=True)
class OpenVinoSparseFactory(SparseModelFactory, OpenVinoFactory):
    """Makes forwards with the outputs of ``sparse_outputs``."""

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
        """Run one batch of a table; see ``OpenVinoForward``."""
        self._head.expect_tokens(int(table.offsets[-1]))
        return super().__call__(table, batch)

    def compute(self, states: Float, mask: Mask) -> Mapping[str, NDArray[np.generic]]:
        """Compute the weights and keep the largest."""
        return self._head.encode_batch(states, mask.sum(axis=1))
