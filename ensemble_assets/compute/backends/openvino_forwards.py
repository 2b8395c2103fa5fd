"""Run a converted network on the CPU with OpenVINO. The library's modules are the reference.

The graph's matrix products may be in bfloat16. Pooling, norms, vocabulary and classification heads are computed outside
of it, in float32. ``openvino_graph`` makes the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError
from ensemble_assets.common.machine import usable_cores
from ensemble_assets.common.stopping import use_own_signal_stack
from ensemble_assets.compute.backends.cpu_products import SHAPE_STEP, compile_settings
from ensemble_assets.compute.backends.forward import SMALLEST_NORM, Forward, ForwardFactory, Precision, failure_of_batch
from ensemble_assets.compute.backends.head_products import HeadProducts
from ensemble_assets.compute.backends.openvino_graph import ARGUMENTS, graph_for, import_openvino
from ensemble_assets.compute.backends.token_head import load_head
from ensemble_assets.compute.backends.token_states import quantise
from ensemble_assets.compute.splade_head.head import SparseHead
from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.spec import Pooling

_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "Cannot allocate memory")
"""Words in OpenVINO's messages when memory runs out: it raises a RuntimeError for everything."""

_MOST_COPIED = 150_000_000
"""Largest output layer that OpenVINO multiplies by: its copies take two and a half times these bytes (measured). BERT's
vocabulary at a width of 768 has 94 MB, XLM-R's 768 MB."""

Float = NDArray[np.float32]
Mask = NDArray[np.int64]
"""``[batch, longest]``, 1 on tokens, which come before the padding."""
Outputs = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class OpenVinoFactory(ForwardFactory):
    """A model for OpenVINO on the CPU; its precision is ``fp32`` or ``bf16``, and it has a cache folder."""

    backend = "openvino"

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, in order."""
        return [name for name in ARGUMENTS if name in self.traits.layouts["document"].arrays]

    @property
    def graph(self) -> Path:
        """Folder of the network's graph; ``ModelUnavailableError`` if this machine has none and cannot make it."""
        assert self.runtime.cache_folder is not None
        return graph_for(self.spec, self.files, self.inputs, self.runtime.cache_folder)

    def load(self, device: str) -> Forward:
        """Compile for the CPU."""
        return OpenVinoForward(self, device)


class OpenVinoForward:
    """A model's graph, and what makes outputs of its states."""

    def __init__(self, factory: OpenVinoFactory, device: str) -> None:
        if device != "cpu":
            raise DeviceError(f"{factory.spec.slug}: OpenVINO runs on the CPU here, not on {device}")
        graph, runtime = factory.graph, factory.runtime
        self.precision: Precision = runtime.precision
        self._factory, self._inputs = factory, factory.inputs
        self._head: SparseHead | None = None
        if factory.spec.kind != "dense":
            self._layer = _layer_of(factory.spec.slug, graph)
        if factory.spec.kind == "sparse":
            threads, matrix = runtime.threads or usable_cores(), self._layer[0]
            small = matrix.nbytes <= _MOST_COPIED
            products = partial(HeadProducts, matrix, runtime.precision, threads) if small else None
            self._head = SparseHead(*self._layer, factory.top_k, threads, runtime.cache_folder, products)
        network = _compiled(factory, graph)
        self._requests: list[Any] = [network.create_infer_request() for _ in range(factory.runtime.streams)]

    def __call__(self, table: TokenTable, batch: Batch) -> Outputs:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
            ModelFailedError: for anything else the backend raises; carries no text.
        """
        if self._head is not None:
            self._head.expect_tokens(int(table.offsets[-1]))
        traits = self._factory.traits
        arrays = padded_arrays(table, batch, traits.layouts["document"], _width(table, batch, traits.max_tokens))
        try:
            return self._outputs(self._states([arrays[name] for name in self._inputs]), arrays["attention_mask"])
        except Exception as error:  # noqa: BLE001  # a backend's message may quote its input
            full = isinstance(error, MemoryError) or any(word in str(error) for word in _OUT_OF_MEMORY)
            failure = failure_of_batch(self._factory.spec.slug, error, batch, out_of_memory=full)
        raise failure  # outside the handler, so that the original exception is not attached

    def release(self) -> None:
        """Drop the compiled networks; the forward is of no use afterwards."""
        self._head, self._requests = None, []
        use_own_signal_stack()

    def _states(self, inputs: list[NDArray[np.integer]]) -> Float:
        """Compute the states of a batch, ``[batch, longest, width]``: every stream computes a part of the rows."""
        parts = min(len(self._requests), len(inputs[0]))
        split = [np.array_split(array, parts) for array in inputs]
        requests = self._requests[:parts]
        try:
            for number, request in enumerate(requests):
                request.start_async({at: pieces[number] for at, pieces in enumerate(split)}, share_inputs=True)
        finally:  # a request that still runs would refuse the next batch
            failures = [failure for failure in map(_ended, requests) if failure is not None]
        if failures:
            raise failures[0]
        states = [np.asarray(request.get_output_tensor(0).data, np.float32) for request in requests]
        return states[0] if parts == 1 else np.concatenate(states)

    def _outputs(self, states: Float, mask: Mask) -> Outputs:
        """Make a batch's outputs from the network's states ``[batch, longest, width]``, in float32."""
        factory = self._factory
        if self._head is not None:
            return self._head.encode_batch(states, mask.sum(axis=1))
        if factory.spec.kind == "rerank":
            matrix, bias = self._layer
            return {"logit": (states @ matrix.T + bias)[:, 0].astype(np.float32)}
        made: dict[str, NDArray[np.generic]] = {}
        if factory.states != "alone":
            vectors = _pooled(states, mask, factory.spec.pooling)
            norms: Any = np.sqrt(np.einsum("ni,ni->n", vectors, vectors, dtype=np.float32))
            made = {"vector": vectors / np.maximum(norms, SMALLEST_NORM)[:, None], "norm": norms}
        if factory.states:
            head = load_head(factory.files)
            made |= quantise(states if head is None else states @ head[0].T + head[1], mask > 0)
        return {name: made[name] for name in factory.outputs}


def _width(table: TokenTable, batch: Batch, most: int) -> int:
    """Return the longest row's tokens, filled up to ``SHAPE_STEP`` but not above ``most``; 0 is no limit."""
    longest = int(table.lengths[batch.rows].max(initial=0))
    filled = -(-longest // SHAPE_STEP) * SHAPE_STEP
    return filled if not most or filled <= most else longest


def _ended(request: Any) -> RuntimeError | None:
    """Wait until a request has ended; return its error."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _layer_of(slug: str, graph: Path) -> tuple[Float, Float]:
    """Read matrix ``[out, hidden]`` and bias ``[out]`` of the layer that a graph leaves out."""
    try:
        with np.load(graph / "head.npz", allow_pickle=False) as stored:
            return stored["matrix"], stored["bias"]
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        message = f"{slug}: its output layer cannot be read. Remove {graph.name} from the cache folder"
        raise ModelUnavailableError(message) from None


def _compiled(factory: OpenVinoFactory, graph: Path) -> Any:
    settings = compile_settings(factory.runtime.precision, factory.runtime.threads, factory.runtime.streams)
    try:
        return import_openvino().Core().compile_model(str(graph / "graph.xml"), "CPU", settings)
    except RuntimeError as error:
        raise ModelUnavailableError(
            f"{factory.spec.slug}: OpenVINO could not compile its graph. Remove {graph.name} from the "
            "cache folder, or set encoding.backend=torch"
        ) from error


def _pooled(states: Float, mask: Mask, pooling: Pooling) -> Float:
    if pooling == "mean":
        weights = mask.astype(np.float32)
        mean: Float = np.matmul(weights[:, None, :], states)[:, 0] / weights.sum(axis=1, keepdims=True)
        return mean
    at_place: Float = states[np.arange(len(states)), 0 if pooling == "cls" else mask.sum(axis=1) - 1]
    return at_place
