"""Choose the backend of a model: torch, the reference, or OpenVINO on a CPU.

A model that OpenVINO cannot run is run by torch, and the reason is recorded. onnxruntime is not offered: it is slower
than OpenVINO in fp32, and its int8 moves the vectors (``docs/decisions/0006``).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from ensemble_assets.common.defaults import TOP_K
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.compute.backends.cpu_products import cpu_products, settled_precision
from ensemble_assets.compute.backends.forward import ForwardFactory, Precision, Runtime, States, states_alone
from ensemble_assets.compute.backends.library.describe import DIFFERS, NOT_CONVERTIBLE, Described, describe, refusal
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoFactory
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

FASTEST = "fastest_on_this_cpu"
REFERENCE = "reference"
ASKED_FOR = "asked_for"
NOT_INSTALLED = "openvino_not_installed"
PRECISION = "precision_not_supported"
OTHER_MODULES = "more_than_a_transformer"
REASONS = (FASTEST, REFERENCE, ASKED_FOR, NOT_INSTALLED, NOT_CONVERTIBLE, PRECISION, OTHER_MODULES, DIFFERS)
"""Words that are recorded as the reason for a backend."""


def choose_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int = TOP_K) -> ForwardFactory:
    """Make the factory of the backend that ``runtime`` names, or of torch if that backend cannot run the model.

    ``auto`` means OpenVINO where it is installed; for a GPU it must be ``torch``. ``top_k`` entries are kept of a
    sparse vector; 0 keeps all.

    Raises:
        ModelUnavailableError: if the model cannot run.
        SettingsError: if ``backend`` is ``openvino`` and OpenVINO cannot run the model.
    """
    model = describe(spec, files, runtime.cache_folder)
    top_k = top_k if spec.kind == "sparse" else 0
    precision, obstacle = runtime.precision, REFERENCE
    if runtime.backend != "torch" and runtime.cache_folder is not None:
        precision, obstacle = _with_openvino(model, files, runtime, runtime.cache_folder)
    if not obstacle:
        reason, settled = ASKED_FOR if runtime.backend == "openvino" else FASTEST, replace(runtime, precision=precision)
        return OpenVinoFactory(model.spec, files, settled, reason, model.traits, top_k)
    if runtime.backend == "openvino" and obstacle != REFERENCE:
        raise SettingsError(
            f"encoding.backend is openvino, which cannot run {spec.slug} ({obstacle}). Set encoding.backend=auto"
        )
    from ensemble_assets.compute.backends.library.forward import LibraryFactory

    splade = model.traits.body == "splade_max"
    tiled = splade and (model.ships or not refusal(model.asked, files, "tiled", runtime.cache_folder))
    states: States = "alone" if model.spec.is_colbert else ""
    return LibraryFactory(model.spec, files, runtime, obstacle, model.traits, top_k, states=states, tiled=tiled)


dense_factory = sparse_factory = choose_factory


def rerank_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make a factory for a reranker: a CrossEncoder, or an encoder whose token vectors or states are compared."""
    factory = choose_factory(spec, files, runtime)
    return states_alone(factory) if spec.pooling == "late_interaction" else factory


def _with_openvino(model: Described, files: ModelFiles, runtime: Runtime, folder: Path) -> tuple[Precision, str]:
    """Return the precision that OpenVINO computes in here, and why it cannot run the model; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return runtime.precision, NOT_INSTALLED
    precision = settled_precision(runtime.precision, folder)
    if runtime.precision == "fp16" or (precision == "bf16" and not cpu_products(folder).bf16):
        return precision, PRECISION
    is_cut = model.spec.kind == "dense" and model.spec.dimension < model.traits.dimension  # (Matryoshka)
    if model.traits.body is None or model.traits.tokens != "fast" or is_cut:
        return precision, OTHER_MODULES
    return precision, refusal(model.asked, files, precision, folder)
