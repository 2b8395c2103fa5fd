"""Describe a model once per machine: what sentence-transformers reads from its files, and which fast paths agree."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemble_assets.common.errors import ModelUnavailableError, SettingsError, StageError
from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, library_versions, this_host
from ensemble_assets.compute.backends.forward import ForwardFactory, Runtime
from ensemble_assets.compute.backends.model_traits import PLAIN, ModelTraits
from ensemble_assets.compute.tokens.token_tables import TokenTable, join_tables, pair_table, single_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models import model_config
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec, PackageSource

if TYPE_CHECKING:
    from ensemble_assets.compute.backends.library.model import LibraryModel
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
        by_library: whether sentence-transformers' modules run it, unless a fast backend is proven equal. The models of
            the embedded profile are not described: the tests compare each of them with the library.
        is_cut: whether its vectors are cut to fewer components than the model gives (Matryoshka).
    """

    spec: ModelSpec
    traits: ModelTraits
    by_library: bool = False
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
    if isinstance(spec.source, PackageSource):
        return Described(model_config.complete_spec(spec, files), PLAIN)
    traits = _described(replace(spec, dimension=0, weight=1.0, share=0.0, windows=1), files, cache_folder)
    complete = _complete(spec, traits)
    return Described(complete, traits, by_library=True, is_cut=0 < complete.dimension < traits.dimension)


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

    traits, model, probe = probe_model(spec, files)
    if _fast_tokens_agree(spec, files, model):
        traits = replace(traits, tokens="fast")
    if traits.body is not None:
        traits = replace(traits, refused=_judge_fast_paths(_complete(spec, traits), files, traits, probe, cache_folder))
    cache.put({key: traits.as_json()})
    return traits


def _fast_tokens_agree(spec: ModelSpec, files: ModelFiles, model: LibraryModel) -> bool:
    """Whether the shared tokeniser makes the rows that the model's own preprocessing makes, cut ones included."""
    from ensemble_assets.compute.backends.library.probe import DOCUMENTS, QUERIES, overlong

    limit = model.max_tokens
    if not limit:
        return False
    documents, queries = [*DOCUMENTS, overlong(limit)], [*QUERIES, overlong(limit)]
    try:
        words = load_vocabulary(files)
        document_ids = tokenise_bodies(documents, words, limit, model.prompt("document") or "")
        query_ids = tokenise_bodies(queries, words, limit, model.prompt("query") or "")
        if spec.kind == "rerank":
            pairs = np.array([(q, d) for q in range(len(queries)) for d in range(len(documents))], np.int64)
            fast = pair_table(query_ids, document_ids, pairs, words.template, limit)
            return _same_rows(fast, model.rows([(queries[q], documents[d]) for q, d in pairs.tolist()], "document"))
        fast = join_tables(
            single_table(document_ids, words.template, limit), single_table(query_ids, words.template, limit)
        )
    except (ModelUnavailableError, StageError, SettingsError, ValueError):
        return False
    return _same_rows(fast, join_tables(model.rows(documents, "document"), model.rows(queries, "query")))


def _same_rows(fast: TokenTable, library: TokenTable) -> bool:
    if not np.array_equal(fast.offsets, library.offsets) or not np.array_equal(fast.ids, library.ids):
        return False
    if library.arrays.keys() - {"token_type_ids"}:
        return False
    longest = int(library.lengths.max())
    columns = np.arange(longest)
    inside = columns < library.lengths[:, None]
    types = fast.segments(np.arange(len(fast)), columns)[inside]
    return np.array_equal(types, library.arrays.get("token_type_ids", np.zeros_like(types)))


def _judge_fast_paths(
    spec: ModelSpec, files: ModelFiles, traits: ModelTraits, probe: Probe, cache_folder: Path | None
) -> dict[str, str]:
    """Run the probe through every fast path; return those that are refused, each with a fixed word.

    Names are ``tiled`` for the tiled SPLADE head, ``fp32`` and ``bf16`` for OpenVINO in that precision.
    """
    from ensemble_assets.compute.backends.library.probe import FP32_TOLERANCE, HALF_COSINE
    from ensemble_assets.compute.backends.openvino_graph import has_bf16

    refused: dict[str, str] = {}
    plain = Described(spec, traits)
    if spec.kind == "sparse":
        from ensemble_assets.compute.backends.torch_splade import SparseFactory

        with suppress(ModelUnavailableError, StageError):
            tiled = SparseFactory(spec, files, Runtime("fp32"), traits=traits, top_k=0).load("cpu")
            refused["tiled"] = "" if probe.difference(tiled) <= FP32_TOLERANCE else DIFFERS
        refused.setdefault("tiled", DIFFERS)
    if cache_folder is None or importlib.util.find_spec("openvino") is None:
        return {name: word for name, word in refused.items() if word}
    for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
        runtime = Runtime(precision, backend="openvino", cache_folder=cache_folder)
        try:
            forward = _openvino_factory(plain, files, runtime).load("cpu")
            half = precision != "fp32"
            agrees = probe.least_cosine(forward) >= HALF_COSINE if half else probe.difference(forward) <= FP32_TOLERANCE
            refused[precision] = "" if agrees else DIFFERS
        except ModelUnavailableError:
            refused[precision] = NOT_CONVERTIBLE
        except StageError:
            refused[precision] = DIFFERS
    return {name: word for name, word in refused.items() if word}


def _openvino_factory(model: Described, files: ModelFiles, runtime: Runtime) -> ForwardFactory:
    """Make the OpenVINO factory of a model for the parity probe; a sparse one keeps all weights.

    Raises:
        ModelUnavailableError: if the model cannot be converted.
    """
    from ensemble_assets.compute.backends import openvino_forwards
    from ensemble_assets.compute.backends.openvino_graph import graph_for

    assert runtime.cache_folder is not None
    graph = graph_for(model.spec, files, runtime.cache_folder)
    if model.spec.kind == "sparse":
        return openvino_forwards.OpenVinoSparseFactory(model.spec, files, runtime, top_k=0, graph=graph)
    dense = model.spec.kind == "dense"
    factory = openvino_forwards.OpenVinoDenseFactory if dense else openvino_forwards.OpenVinoRerankFactory
    return factory(model.spec, files, runtime, graph=graph)
