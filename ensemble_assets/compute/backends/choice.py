"""Choose the backend of a model: torch, the reference, or OpenVINO on a CPU. One function for each kind of model.

A model that OpenVINO cannot run is run by torch, and the reason is recorded. onnxruntime is not offered: it is slower
than OpenVINO in fp32, and its int8 moves the vectors (``docs/decisions/0006``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError
from ensemble_assets.compute.backends.forward import ForwardFactory, Precision, Runtime
from ensemble_assets.compute.backends.late_interaction import refuse_unsuitable
from ensemble_assets.compute.backends.library.describe import DIFFERS, Described, describe
from ensemble_assets.compute.backends.openvino_graph import Graph, graph_for, has_bf16
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec

FASTEST = "fastest_on_this_cpu"
REFERENCE = "reference"
ASKED_FOR = "asked_for"
NOT_INSTALLED = "openvino_not_installed"
NOT_CONVERTIBLE = "model_not_convertible"
PRECISION = "precision_not_supported"
OTHER_MODULES = "more_than_a_transformer"
REASONS = (FASTEST, REFERENCE, ASKED_FOR, NOT_INSTALLED, NOT_CONVERTIBLE, PRECISION, OTHER_MODULES, DIFFERS)
"""Words that are recorded as the reason for a backend."""


def dense_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make a factory for an encoder; see ``choose_factory``."""
    model = describe(spec, files, runtime.cache_folder)

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        if model.by_library:
            from ensemble_assets.compute.backends.library.forward import LibraryFactory

            return LibraryFactory(model.spec, files, runtime, reason, model.traits)
        from ensemble_assets.compute.backends.torch_forwards import DenseFactory

        return DenseFactory(model.spec, files, runtime, reason, model.traits)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoDenseFactory

        return OpenVinoDenseFactory(model.spec, files, runtime, reason, model.traits, graph=graph)

    return choose_factory(model, files, runtime, with_torch, with_openvino)


def sparse_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int) -> ForwardFactory:
    """Make a factory for a sparse encoder; see ``choose_factory``."""
    model = describe(spec, files, runtime.cache_folder)

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        if model.by_library and (model.traits.body != "splade_max" or model.traits.refused.get("tiled")):
            from ensemble_assets.compute.backends.library.forward import LibrarySparseFactory

            return LibrarySparseFactory(model.spec, files, runtime, reason, model.traits, top_k)
        from ensemble_assets.compute.backends.torch_splade import SparseFactory

        return SparseFactory(model.spec, files, runtime, reason, model.traits, top_k)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import OpenVinoSparseFactory

        return OpenVinoSparseFactory(model.spec, files, runtime, reason, model.traits, top_k, graph=graph)

    return choose_factory(model, files, runtime, with_torch, with_openvino)


def rerank_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make a factory for a CrossEncoder, or for late interaction; see ``choose_factory``.

    Raises:
        ModelUnavailableError: if the model's tokenizer does not suit late interaction.
    """
    late = spec.pooling == "late_interaction"
    if late:
        refuse_unsuitable(spec, files)
        spec = replace(spec, kind="dense", dimension=0)  # late interaction loads an encoder
    model = describe(spec, files, runtime.cache_folder)
    if late and model.traits.body is None:
        raise ModelUnavailableError(
            f"{spec.slug}: late interaction needs an encoder that is one transformer. Choose another model"
        )
    if late:
        model = replace(model, spec=replace(model.spec, pooling="late_interaction", dimension=1))

    def with_torch(runtime: Runtime, reason: str) -> ForwardFactory:
        if model.by_library and not late:
            from ensemble_assets.compute.backends.library.forward import LibraryFactory

            return LibraryFactory(model.spec, files, runtime, reason, model.traits)
        from ensemble_assets.compute.backends.torch_forwards import LateInteractionFactory, RerankFactory

        return (LateInteractionFactory if late else RerankFactory)(model.spec, files, runtime, reason, model.traits)

    def with_openvino(runtime: Runtime, graph: Graph, reason: str) -> ForwardFactory:
        from ensemble_assets.compute.backends.openvino_forwards import (
            OpenVinoLateInteractionFactory,
            OpenVinoRerankFactory,
        )

        factory = OpenVinoLateInteractionFactory if late else OpenVinoRerankFactory
        return factory(model.spec, files, runtime, reason, model.traits, graph=graph)

    return choose_factory(model, files, runtime, with_torch, with_openvino)


def choose_factory(
    model: Described,
    files: ModelFiles,
    runtime: Runtime,
    with_torch: Callable[[Runtime, str], ForwardFactory],
    with_openvino: Callable[[Runtime, Graph, str], ForwardFactory],
) -> ForwardFactory:
    """Make the factory of the backend that ``runtime`` names, or of torch if that backend cannot run the model.

    Args:
        model: complete spec and traits.
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
    precision = settled_precision(runtime.precision)
    obstacle, detail = _obstacle(runtime.precision) or _difference(model, precision), ""
    if not obstacle:
        try:
            graph = graph_for(model.spec, files, runtime.cache_folder)
            settled = replace(runtime, precision=precision)
            return with_openvino(settled, graph, ASKED_FOR if by_name else FASTEST)
        except ModelUnavailableError as error:
            obstacle, detail = NOT_CONVERTIBLE, f"{error}. "
    if by_name:
        raise SettingsError(
            f"encoding.backend is openvino, which cannot run {model.spec.slug} ({obstacle}). {detail}"
            "Set encoding.backend=auto"
        )
    return with_torch(runtime, obstacle)


def _difference(model: Described, precision: Precision) -> str:
    """Return why a model's OpenVINO graph is not the library's model, as the probe found; empty if it is."""
    if not model.by_library:
        return ""
    if model.traits.body is None or model.traits.tokens != "fast" or model.is_cut:
        return OTHER_MODULES
    return model.traits.refused.get(precision, "")


def _obstacle(precision: Precision) -> str:
    """Return why OpenVINO cannot run here in a precision; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return NOT_INSTALLED
    return PRECISION if precision == "fp16" or (precision == "bf16" and not has_bf16()) else ""


def settled_precision(precision: Precision) -> Precision:
    """Return the precision that OpenVINO computes in: ``auto`` becomes bf16 if the CPU has it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16() else "fp32"
