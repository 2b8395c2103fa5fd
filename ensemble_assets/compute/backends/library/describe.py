"""Describe a model once per machine: what sentence-transformers reads from its files, and which fast paths agree."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ensemble_assets.common.errors import ModelUnavailableError, StageError
from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, library_versions, this_host
from ensemble_assets.compute.backends.factories import openvino_factory, torch_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.shipped import SHIPPED
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.backends.openvino_graph import has_bf16
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import POOLINGS, ModelSpec, PackageSource

if TYPE_CHECKING:
    from ensemble_assets.compute.backends.library.probe import Probe

_FORMAT = 2
"""Goes up when traits mean something else; models are then described again."""

_MOST_MODELS = 200
"""Descriptions kept on a machine, of a few kilobytes each."""

DIFFERS = "differs_from_library"
NOT_CONVERTIBLE = "model_not_convertible"


@dataclass(frozen=True)
class Described:
    """A model as it is run.

    Attributes:
        spec: completed from the model's files.
        traits: how its rows are made and what its modules are.
        is_cut: whether its vectors are cut to fewer components than the model gives (Matryoshka).
    """

    spec: ModelSpec
    traits: ModelTraits
    is_cut: bool = False


def describe(spec: ModelSpec, files: ModelFiles, cache_folder: Path | None) -> Described:
    """Complete a model's spec and find out how it must be run.

    Args:
        spec: a registered or custom model, or one that a user named by its id.
        files: where the model's files are.
        cache_folder: descriptions and converted graphs are kept below it; None describes in memory, without OpenVINO.

    Raises:
        ModelUnavailableError: if sentence-transformers cannot load the model, if its batches differ from its own call,
            or if the files contradict the spec.
    """
    if spec.pooling == "late_interaction":
        spec = replace(spec, kind="dense", dimension=0)  # it runs an encoder
    shipped = SHIPPED if isinstance(spec.source, PackageSource) else {}
    traits = shipped.get((files.fingerprint, spec.pooling))
    if traits is None:
        plain = replace(spec, dimension=0, pooling=POOLINGS[spec.kind][0], weight=1.0, share=0.0, windows=1)
        traits = _described(plain, files, cache_folder)
    complete = _complete(spec, traits)
    return Described(complete, traits, is_cut=0 < complete.dimension < traits.dimension)


def _complete(spec: ModelSpec, traits: ModelTraits) -> ModelSpec:
    if spec.kind == "dense" and 0 < spec.dimension < traits.dimension:
        width = spec.dimension  # Matryoshka: the first components, divided by their norm again
    elif spec.dimension in (0, traits.dimension):
        width = traits.dimension
    else:
        raise ModelUnavailableError(
            f"{spec.slug}: registered with dimension {spec.dimension}, but its files say {traits.dimension}. "
            "Correct the spec"
        )
    limits = [limit for limit in (spec.max_tokens, traits.max_tokens) if limit]
    return replace(
        spec,
        dimension=width,
        max_tokens=min(limits, default=0),
        pooling=traits.body or spec.pooling,
        query_prefix=traits.prompts.get("query", "") if spec.query_prefix is None else spec.query_prefix,
        document_prefix=traits.prompts.get("document", "") if spec.document_prefix is None else spec.document_prefix,
    )


@lru_cache(maxsize=32)
def _described(spec: ModelSpec, files: ModelFiles, cache_folder: Path | None) -> ModelTraits:
    cache = JsonCache(None if cache_folder is None else cache_folder / "models.json", _MOST_MODELS)
    asked = {**asdict(spec), "source": "", "slug": "", "licence": ""}
    key = digest([_FORMAT, files.fingerprint, asked, library_versions(), this_host().cpu])
    stored = cache.read().get(key)
    if stored is not None:
        return ModelTraits.from_json(stored)
    from ensemble_assets.compute.backends.library.probe import probe_model

    traits, probe = probe_model(spec, files)
    if traits.body is not None:
        refused = _judge_fast_paths(_complete(spec, traits), files, traits, probe, cache_folder)
        traits = replace(traits, refused=refused)
    cache.put({key: traits.as_json()})
    return traits


def _judge_fast_paths(
    spec: ModelSpec, files: ModelFiles, traits: ModelTraits, probe: Probe, cache_folder: Path | None
) -> dict[str, str]:
    """Run the probe through every fast path; return those that are refused, each with a fixed word.

    Names are ``tiled`` for the tiled SPLADE head, ``fp32`` and ``bf16`` for OpenVINO in that precision.
    """
    from ensemble_assets.compute.backends.library.probe import FP32_TOLERANCE, HALF_COSINE

    runtimes: dict[str, Runtime] = {}
    if spec.kind == "sparse":
        runtimes["tiled"] = Runtime("fp32")
    if cache_folder is not None and importlib.util.find_spec("openvino") is not None:
        for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
            runtimes[precision] = Runtime(precision, backend="openvino", cache_folder=cache_folder)
    refused: dict[str, str] = {}
    for name, runtime in runtimes.items():
        make = torch_factory if name == "tiled" else openvino_factory
        try:
            forward = make(spec, files, runtime, "", traits, top_k=0).load("cpu")
            half = runtime.precision != "fp32"
            agrees = probe.least_cosine(forward) >= HALF_COSINE if half else probe.difference(forward) <= FP32_TOLERANCE
            if not agrees:
                refused[name] = DIFFERS
        except ModelUnavailableError:
            refused[name] = NOT_CONVERTIBLE
        except StageError:
            refused[name] = DIFFERS
    return refused
