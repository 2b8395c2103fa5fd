"""Choose the backend of a model: torch, the reference, or OpenVINO on a CPU.

A model that OpenVINO cannot run is run by torch, and the reason is recorded. onnxruntime is not offered: it is slower
than OpenVINO in fp32, and its int8 moves the vectors (``docs/decisions/0006``).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Literal

from ensemble_assets.common.defaults import TOP_K
from ensemble_assets.common.errors import ModelUnavailableError, SettingsError
from ensemble_assets.compute.backends.cpu_products import cpu_products, settled_precision
from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.backends.late_interaction import refuse_unsuitable
from ensemble_assets.compute.backends.library.describe import (
    DIFFERS,
    NOT_CONVERTIBLE,
    Described,
    describe,
    refusal,
)
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


def choose_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int = 0) -> ForwardFactory:
    """Make the factory of the backend that ``runtime`` names, or of torch if that backend cannot run the model.

    Args:
        spec: a model of any kind.
        files: where its weights are.
        runtime: ``backend`` ``auto`` means OpenVINO where it is installed; it must be ``torch`` for a GPU.
        top_k: entries kept of a sparse vector; 0 keeps all.

    Raises:
        ModelUnavailableError: if the model cannot run, or does not suit late interaction.
        SettingsError: if ``backend`` is ``openvino`` and OpenVINO cannot run the model.
    """
    late = spec.pooling == "late_interaction"
    if late:
        refuse_unsuitable(spec, files)
    model = describe(spec, files, runtime.cache_folder)
    if late and model.traits.body is None:
        raise ModelUnavailableError(
            f"{spec.slug}: late interaction needs an encoder that is one transformer. Choose another model"
        )
    if late:
        model = replace(model, spec=replace(model.spec, pooling=spec.pooling, dimension=1))
    spec, traits = model.spec, model.traits
    if runtime.backend == "torch" or runtime.cache_folder is None:
        return _with_torch(model, files, runtime, REFERENCE, top_k)
    by_name = runtime.backend == "openvino"
    obstacle, detail = _obstacle(runtime), ""
    if not obstacle:
        precision = settled_precision(runtime.precision, runtime.cache_folder)
        obstacle = _difference(model, files, precision, runtime)
    if not obstacle:
        reason, settled = ASKED_FOR if by_name else FASTEST, replace(runtime, precision=precision)
        try:
            return OpenVinoFactory.converted(spec, files, settled, reason, traits, top_k)
        except ModelUnavailableError as error:
            obstacle, detail = NOT_CONVERTIBLE, f"{error}. "
    if by_name:
        raise SettingsError(
            f"encoding.backend is openvino, which cannot run {spec.slug} ({obstacle}). {detail}"
            "Set encoding.backend=auto"
        )
    return _with_torch(model, files, runtime, obstacle, top_k)


dense_factory = rerank_factory = choose_factory


def sparse_factory(spec: ModelSpec, files: ModelFiles, runtime: Runtime, top_k: int = TOP_K) -> ForwardFactory:
    """Make a factory for a sparse encoder; see ``choose_factory``."""
    return choose_factory(spec, files, runtime, top_k)


def _with_torch(model: Described, files: ModelFiles, runtime: Runtime, reason: str, top_k: int) -> ForwardFactory:
    from ensemble_assets.compute.backends.library.forward import LibraryFactory

    splade = model.traits.body == "splade_max"
    tiled = splade and not refusal(model, files, "tiled", runtime.cache_folder)
    return LibraryFactory(model.spec, files, runtime, reason, model.traits, top_k, tiled=tiled)


def _difference(model: Described, files: ModelFiles, precision: Literal["fp32", "bf16"], runtime: Runtime) -> str:
    """Return why a model's OpenVINO graph is not the library's model, as the probe found; empty if it is."""
    if model.traits.body is None or model.traits.tokens != "fast" or model.is_cut:
        return OTHER_MODULES
    return refusal(model, files, precision, runtime.cache_folder)


def _obstacle(runtime: Runtime) -> str:
    """Return why OpenVINO cannot run here in a precision; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return NOT_INSTALLED
    precision = runtime.precision
    lacks = precision == "fp16" or (precision == "bf16" and not cpu_products(runtime.cache_folder).bf16)
    return PRECISION if lacks else ""
