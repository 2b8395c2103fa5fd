"""Which backend runs a model, and why: torch, the reference, or OpenVINO on a CPU. One maker of factories per kind.

A model that OpenVINO cannot run is run by torch, with the reason recorded; nothing fails for lack of speed. onnxruntime
is no choice: it is slower than OpenVINO in fp32, and its int8 moves the vectors (docs/decisions/0006).
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
"""The fixed words that are recorded."""


def dense_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """A factory for an encoder; see ``factory_with``."""

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_forwards import DenseFactory

        return DenseFactory(spec, files, runtime, reason)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoDenseFactory

        return OpenVinoDenseFactory(spec, files, runtime, reason, graph=graph)

    return factory_with(spec, files, runtime, with_torch, with_openvino)


def sparse_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int) -> ForwardFactory:
    """A factory for a SPLADE model; see ``factory_with``."""

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_splade import SparseFactory

        return SparseFactory(spec, files, runtime, reason, top_k)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoSparseFactory

        return OpenVinoSparseFactory(spec, files, runtime, reason, top_k, graph=graph)

    return factory_with(spec, files, runtime, with_torch, with_openvino)


def rerank_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """A factory for a CrossEncoder, or for late interaction; see ``factory_with``.

    Raises:
        ModelUnavailableError: if the model's tokenizer does not suit late interaction.
    """
    late = spec.pooling == "late_interaction"
    if late:
        refuse_unsuitable(spec, files)
        spec = replace(spec, kind="dense")  # it is loaded as the encoder that it is

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.torch_forwards import LateInteractionFactory, RerankFactory

        return (LateInteractionFactory if late else RerankFactory)(spec, files, runtime, reason)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import (
            OpenVinoLateInteractionFactory,
            OpenVinoRerankFactory,
        )

        made = OpenVinoLateInteractionFactory if late else OpenVinoRerankFactory
        return made(spec, files, runtime, reason, graph=graph)

    return factory_with(spec, files, runtime, with_torch, with_openvino)


def factory_with(
    spec: ModelSpec,
    files: ModelFiles,
    runtime: Runtime,
    with_torch: Callable[[Runtime, str], ForwardFactory],
    with_openvino: Callable[[Runtime, Graph, str], ForwardFactory],
) -> ForwardFactory:
    """The factory of the backend that ``runtime`` asks for, or of torch where that one cannot run the model.

    Args:
        spec: a complete spec.
        files: where its weights are.
        runtime: ``backend`` ``auto`` means OpenVINO where it is installed; say ``torch`` for a GPU.
        with_torch: makes the torch factory, given the runtime and the reason.
        with_openvino: makes the OpenVINO factory, given the runtime with its precision settled, the graph, the reason.

    Raises:
        SettingsError: if OpenVINO was asked for by name and cannot run the model.
    """
    if runtime.backend == "torch" or runtime.cache_folder is None:
        return with_torch(runtime, REFERENCE)
    asked = runtime.backend == "openvino"
    why = _why_not(runtime.precision)
    if not why:
        try:
            graph = graph_for(spec, files, runtime.cache_folder)
            settled = replace(runtime, precision=settled_precision(runtime.precision))
            return with_openvino(settled, graph, ASKED_FOR if asked else FASTEST)
        except ModelUnavailableError as error:
            why, detail = NOT_CONVERTIBLE, f"{error}. "
    else:
        detail = ""
    if asked:
        raise SettingsError(
            f"encoding.backend is openvino, which cannot run {spec.slug} ({why}). {detail}Set encoding.backend=auto"
        )
    return with_torch(runtime, why)


def _why_not(precision: Precision) -> str:
    if importlib.util.find_spec("openvino") is None:
        return NOT_INSTALLED
    return PRECISION if precision == "fp16" or (precision == "bf16" and not _has_bf16()) else ""


def settled_precision(precision: Precision) -> Precision:
    """What OpenVINO computes in: bf16 where ``auto`` may choose and the CPU has it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16() else "fp32"


@lru_cache(maxsize=1)
def _has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as OpenVINO sees it."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
