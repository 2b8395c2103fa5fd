"""Choose the backend of a model: torch, the reference, or OpenVINO on a CPU. One function for each kind of model.

A model that OpenVINO cannot run is run by torch, and the reason is recorded. onnxruntime is not offered: it is slower
than OpenVINO in fp32, and its int8 moves the vectors (``docs/decisions/0006``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError
from ensemble_assets.compute.backends.forward import ForwardFactory, Precision, Runtime
from ensemble_assets.compute.backends.late_interaction import refuse_unsuitable
from ensemble_assets.compute.backends.openvino_graph import Graph, graph_for, import_openvino
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec

FASTEST = "fastest_on_this_cpu"
REFERENCE = "reference"
ASKED_FOR = "asked_for"
NOT_INSTALLED = "openvino_not_installed"
NOT_CONVERTIBLE = "model_not_convertible"
PRECISION = "precision_not_supported"
REASONS = (FASTEST, REFERENCE, ASKED_FOR, NOT_INSTALLED, NOT_CONVERTIBLE, PRECISION)
"""Words that are recorded as the reason for a backend."""


def dense_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make a factory for an encoder; see ``choose_factory``."""

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_forwards import DenseFactory

        return DenseFactory(spec, files, runtime, reason)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoDenseFactory

        return OpenVinoDenseFactory(spec, files, runtime, reason, graph=graph)

    return choose_factory(spec, files, runtime, with_torch, with_openvino)


def sparse_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int) -> ForwardFactory:
    """Make a factory for a SPLADE model; see ``choose_factory``."""

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_splade import SparseFactory

        return SparseFactory(spec, files, runtime, reason, top_k)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoSparseFactory

        return OpenVinoSparseFactory(spec, files, runtime, reason, top_k, graph=graph)

    return choose_factory(spec, files, runtime, with_torch, with_openvino)


def rerank_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make a factory for a CrossEncoder, or for late interaction; see ``choose_factory``.

    Raises:
        ModelUnavailableError: if the model's tokenizer does not suit late interaction.
    """
    late = spec.pooling == "late_interaction"
    if late:
        refuse_unsuitable(spec, files)
        spec = replace(spec, kind="dense")  # late interaction loads an encoder

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_forwards import LateInteractionFactory, RerankFactory

        return (LateInteractionFactory if late else RerankFactory)(spec, files, runtime, reason)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import (
            OpenVinoLateInteractionFactory,
            OpenVinoRerankFactory,
        )

        factory = OpenVinoLateInteractionFactory if late else OpenVinoRerankFactory
        return factory(spec, files, runtime, reason, graph=graph)

    return choose_factory(spec, files, runtime, with_torch, with_openvino)


def choose_factory(
    spec: ModelSpec,
    files: ModelFiles,
    runtime: Runtime,
    with_torch: Callable[[Runtime, str], ForwardFactory],
    with_openvino: Callable[[Runtime, Graph, str], ForwardFactory],
) -> ForwardFactory:
    """Make the factory of the backend that ``runtime`` names, or of torch if that backend cannot run the model.

    Args:
        spec: a complete spec.
        files: where its weights are.
        runtime: ``backend`` ``auto`` means OpenVINO where it is installed; it must be ``torch`` for a GPU.
        with_torch: makes the torch factory, given the runtime and the reason.
        with_openvino: makes the OpenVINO factory, given the runtime with its precision settled, the graph, the reason.

    Raises:
        SettingsError: if ``backend`` is ``openvino`` and OpenVINO cannot run the model.
    """
    if runtime.backend == "torch" or runtime.cache_folder is None:
        return with_torch(runtime, REFERENCE)
    by_name = runtime.backend == "openvino"
    obstacle, detail = _obstacle(runtime.precision), ""
    if not obstacle:
        try:
            graph = graph_for(spec, files, runtime.cache_folder)
            settled = replace(runtime, precision=settled_precision(runtime.precision))
            return with_openvino(settled, graph, ASKED_FOR if by_name else FASTEST)
        except ModelUnavailableError as error:
            obstacle, detail = NOT_CONVERTIBLE, f"{error}. "
    if by_name:
        raise SettingsError(
            f"encoding.backend is openvino, which cannot run {spec.slug} ({obstacle}). {detail}"
            "Set encoding.backend=auto"
        )
    return with_torch(runtime, obstacle)


def _obstacle(precision: Precision) -> str:
    """Return why OpenVINO cannot run here in a precision; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return NOT_INSTALLED
    return PRECISION if precision == "fp16" or (precision == "bf16" and not _has_bf16()) else ""


def settled_precision(precision: Precision) -> Precision:
    """Return the precision that OpenVINO computes in: ``auto`` becomes bf16 if the CPU has it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16() else "fp32"


@lru_cache(maxsize=1)
def _has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, according to OpenVINO."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
