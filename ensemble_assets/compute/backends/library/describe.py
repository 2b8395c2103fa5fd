"""Describe a model once per machine: what sentence-transformers reads from its files, and which fast paths agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from ensemble_assets.common.errors import ModelUnavailableError, StageError
from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, library_versions, this_host
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.shipped import SHIPPED
from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoFactory
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.refused_layouts import has_many_vectors
from ensemble_assets.models.spec import POOLINGS, ModelSpec, PackageSource

_FORMAT = 4
"""Goes up when traits mean something else; models are then described again."""

_MOST_ENTRIES = 400
"""Descriptions and verdicts kept on a machine, of a few kilobytes at most."""

FastPath = Literal["tiled", "fp32", "bf16"]
"""The tiled SPLADE head, or OpenVINO in a precision."""

DIFFERS = "differs_from_library"
NOT_CONVERTIBLE = "model_not_convertible"


@dataclass(frozen=True)
class Described:
    """A model as it is run.

    Attributes:
        spec: completed from the model's files.
        traits: how its rows are made and what its modules are.
        asked: what is probed.
        ships: whether its traits come with this program.
    """

    spec: ModelSpec
    traits: ModelTraits
    asked: ModelSpec
    ships: bool


def describe(spec: ModelSpec, files: ModelFiles, cache_folder: Path | None) -> Described:
    """Complete the spec of a registered model, a custom one or a user's, and find out how it must be run.

    Descriptions are kept below ``cache_folder``; None keeps them in memory. ``ModelUnavailableError`` if
    sentence-transformers cannot load the model, if its batches differ from its own call, or if the files contradict
    the spec.
    """
    own_head = spec.kind == "rerank" and has_many_vectors(files.folder)
    if own_head or spec.pooling == "late_interaction":  # it runs an encoder
        spec = replace(spec, kind="dense", dimension=0, pooling="multi_vector" if own_head else spec.pooling)
    pooling = spec.pooling if own_head else POOLINGS[spec.kind][0]
    asked = replace(spec, dimension=0, pooling=pooling, weight=1.0, share=0.0, windows=1)
    asked = replace(asked, share_beside_late=None, late_share=0.0)
    shipped = SHIPPED.get((files.fingerprint, spec.pooling)) if isinstance(spec.source, PackageSource) else None
    traits = shipped or _described(asked, files, cache_folder)
    return Described(_complete(spec, traits), traits, asked, shipped is not None)


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
    def probed() -> dict[str, Any]:
        from ensemble_assets.compute.backends.library.probe import probe_model

        return asdict(probe_model(spec, files)[0])

    return ModelTraits.from_json(_once(cache_folder, _key(spec, files), probed))


@lru_cache(maxsize=32)
def refusal(asked: ModelSpec, files: ModelFiles, path: FastPath, cache_folder: Path | None) -> str:
    """Run the probe through a fast path, once per machine; return why it is refused, a fixed word, or ``""``."""

    def judged() -> str:
        from ensemble_assets.compute.backends.library.forward import LibraryFactory
        from ensemble_assets.compute.backends.library.probe import probe_model

        traits, probe = probe_model(asked, files)
        runtime = Runtime(probe.precision if path == "tiled" else path, cache_folder=cache_folder)
        make = partial(LibraryFactory, tiled=True) if path == "tiled" else OpenVinoFactory
        try:
            forward = make(_complete(asked, traits), files, runtime, "", traits).load("cpu")
            return "" if probe.judge(forward)[0] else DIFFERS
        except ModelUnavailableError:
            return NOT_CONVERTIBLE
        except StageError:
            return DIFFERS

    return str(_once(cache_folder, _key(asked, files, path), judged))


def _once(folder: Path | None, key: str, make: Callable[[], Any]) -> Any:
    """Return what the machine's cache has under a key; make it and keep it if there is nothing."""
    cache = JsonCache(None if folder is None else folder / "models.json", _MOST_ENTRIES)
    stored = cache.read().get(key)
    if stored is None:
        stored = make()
        cache.put({key: stored})
    return stored


def _key(spec: ModelSpec, files: ModelFiles, path: str = "") -> str:
    asked = {**asdict(spec), "source": "", "slug": "", "licence": ""}
    return digest([_FORMAT, files.fingerprint, asked, path, library_versions(), this_host().cpu])
