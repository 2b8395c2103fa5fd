"""Read from a bundle what a search needs: texts, headings, vectors, and how its run searched.

Everything comes from the files of the bundle, so one that was copied here without its artefacts can be asked too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.artefacts.fast_json import parse_object, parse_value
from ensemble_assets.collection.chunks import heading_of
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.read.bundle_reader import Bundle, list_items, open_array, open_vectors, read_object, records
from ensemble_assets.retrieval.sparse_topk import SparseRows

_SOURCES = ("source", "source_path", "source_file", "document_name")


DenseArray = tuple[NDArray[np.float32], NDArray[np.float32] | None]
"""The chunks' vectors of one model, ``[n, dim]``, and their norms for a model whose dot products rank."""


@dataclass(frozen=True)
class Corpus:
    """The chunks of a bundle, in row order.

    Attributes:
        chunks: columns ``chunk_id``, ``heading``, ``source`` and ``text``.
        dense_models: the manifest's entry of every dense model, the primary first: ``slug`` and ``hf_model_id``.
        manifest: sections of the run; empty where the bundle has none.
    """

    bundle: Bundle
    chunks: pl.DataFrame
    dense_models: tuple[Mapping[str, Any], ...]
    manifest: Mapping[str, Any]

    def section(self, *names: str) -> Mapping[str, Any]:
        """Give a section of the manifest; empty where it is missing."""
        section = self.manifest
        for name in names:
            inner = section.get(name)
            section = inner if isinstance(inner, Mapping) else {}
        return section

    def dense(self, number: int) -> DenseArray:
        """Map the vectors of a dense model by its place in ``dense_models``."""
        names, folder = self.bundle.names, self.bundle.folder
        companion = str(self.dense_models[number]["slug"]) if number else None
        norms = folder / names.norms(companion)
        vectors = open_vectors(folder / names.vectors(companion))
        if len(vectors) != self.chunks.height:
            raise ArtefactError(f"{folder.name}: {len(vectors)} vectors for {self.chunks.height} texts. Export again")
        return vectors, open_array(norms) if norms.is_file() else None

    def sparse(self, dimension: int) -> SparseRows:
        """Read the sparse vectors of all chunks."""
        indptr, indices, values = array("q", [0]), array("i"), array("f")
        for record in records(self.bundle.path("sparse.jsonl")):
            vector = (record or {}).get("sparse_vector")
            if isinstance(vector, dict):
                indices.extend(vector.get("indices") or ())
                values.extend(vector.get("values") or ())
            indptr.append(len(indices))
        return SparseRows(
            np.array(indptr, np.int64), np.array(indices, np.int32), np.array(values, np.float32), dimension
        )


def read_corpus(bundle: Bundle) -> Corpus:
    """Read the chunks of a bundle; a damaged file is an ``ArtefactError``."""
    texts = [parse_value(item) for item in list_items(bundle.path("texts.json"))]
    shown = [
        (_first(each, ("chunk_id",)) or str(row), heading_of(each), _first(each, _SOURCES))
        for row, each in enumerate(parse_object(item) or {} for item in list_items(bundle.path("metadata.json")))
    ]
    if len(texts) != len(shown) or not all(isinstance(text, str) for text in texts):
        raise ArtefactError(f"{bundle.folder.name}: texts and metadata do not fit together. Export the bundle again")
    schema = dict.fromkeys(("chunk_id", "heading", "source"), pl.String)
    chunks = pl.DataFrame(shown, schema=schema, orient="row").with_columns(pl.Series("text", texts, pl.String))
    return Corpus(bundle, _unique_ids(chunks), _dense_models(bundle), bundle.manifest)


def _dense_models(bundle: Bundle) -> tuple[Mapping[str, Any], ...]:
    run = bundle.manifest.get("dense_run")
    models = run.get("models") if isinstance(run, Mapping) else None
    if isinstance(models, list) and models:
        return tuple(models)
    model = read_object(bundle.path("stats.json")).get("model_config", {})  # bundles of v4.0 name one model here
    return ({"slug": model.get("name"), "hf_model_id": model.get("hf_model_id")},)


def _first(metadata: Mapping[str, Any], names: Iterable[str]) -> str:
    return next((str(metadata[name]) for name in names if metadata.get(name) not in (None, "")), "")


def _unique_ids(chunks: pl.DataFrame) -> pl.DataFrame:
    """Append a number to repeated ids, which a search must tell apart."""
    repeat = pl.int_range(pl.len()).over("chunk_id")
    name = pl.when(repeat > 0).then(pl.format("{}#{}", "chunk_id", repeat + 1)).otherwise("chunk_id")
    return chunks.with_columns(name.alias("chunk_id"))
