"""State v4.0's records from the contract's text alone: plain dictionaries through ``json.dumps``.

Slow and obvious. No function of the writer is used, so that a check of the writer has an independent opinion.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
"""The encoder that ``json.dumps(..., ensure_ascii=False)`` makes anew at every call."""

_EMPTY: dict[str, Any] = {"indices": [], "values": [], "tokens": [], "stats": {}}
_LARGEST_WEIGHT = 1e15
"""A larger weight, like one that is not finite, is no usable weight."""


class Model(NamedTuple):
    """A dense model as points describe it; ``width`` is the dimension of its vectors."""

    slug: str
    hf_model_id: str
    width: int


def metadata_echo(features: Any) -> dict[str, Any] | None:
    """Make the sparse vector that v4.0 derives from ``sparse_features``; None without a usable term weight."""
    if not isinstance(features, dict) or not isinstance(features.get("term_weights"), list):
        return None
    terms: list[str] = []
    weights: list[np.float32] = []
    for entry in features["term_weights"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("term"), str):
            continue
        weight = entry.get("weight")
        if isinstance(weight, (int, float)) and abs(weight) <= _LARGEST_WEIGHT:
            terms.append(entry["term"])
            weights.append(np.float32(weight))
    if not terms:
        return None
    squares = math.fsum(float(weight * weight) for weight in weights)
    norm = np.float32(math.sqrt(float(np.float32(squares))))
    return {
        "indices": [int(hashlib.sha1(term.encode(), usedforsecurity=False).hexdigest()[:8], 16) for term in terms],
        "values": [float(weight / norm) if norm > 0 else float(weight) for weight in weights],
        "tokens": terms,
        "stats": {
            "weight_norm": float(norm),
            "unique_terms": features.get("unique_terms", len(terms)),
            "total_terms": features.get("total_terms", 0),
            "weighting": features.get("weighting", "tf-normalized"),
        },
    }


def without_additions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Give a payload or a metadata item as v4.0 has it: with the echo in place of a live sparse vector.

    A live vector is known by the keys that v4.1 adds to its ``stats``.
    """
    plain = dict(record)
    vector = plain.get("sparse_vector")
    stats = vector.get("stats") if isinstance(vector, dict) else None
    if isinstance(stats, dict) and "index_space" in stats:
        echo = metadata_echo(plain.get("sparse_features"))
        if echo is None:
            del plain["sparse_vector"]
        else:
            plain["sparse_vector"] = echo
    return plain


def point(
    row: int,
    metadata: Mapping[str, Any],
    text: str,
    models: Sequence[Model],
    clock: str,
    vectors: Mapping[str, list[float]],
) -> dict[str, Any]:
    """Make the line of the points file from the chunk's items of the metadata and texts files.

    ``models`` has the primary one first, ``vectors`` are by model, and ``clock`` is ``kaggle_export_timestamp``.
    """
    primary, companions = models[0], models[1:]
    info: dict[str, Any] = {
        "name": primary.slug,
        "hf_model_id": primary.hf_model_id,
        "dimension": primary.width,
        "version": "v4",
    }
    if companions:
        info["companions"] = {m.slug: {"dimension": m.width, "hf_model_id": m.hf_model_id} for m in companions}
    payload = {
        **metadata,
        "text_preview": text[:500],
        "full_text_length": len(text),
        "kaggle_export_timestamp": clock,
        "model_info": info,
        "primary_vector_name": primary.slug,
        "dense_vector_names": [model.slug for model in models],
    }
    if companions:
        payload["companion_vector_dimensions"] = {model.slug: model.width for model in companions}
    return {"id": row, "payload": payload, "vectors": dict(vectors)}


def sparse_record(row: int, vector: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the line of the sparse file from the sparse vector of the point."""
    plain = vector or _EMPTY
    inner = {"indices": plain["indices"], "values": plain["values"]}
    return {"id": row, "sparse_vector": inner, "tokens": plain["tokens"], "stats": plain["stats"]}


def json_line(record: Any) -> bytes:
    """Write a line of a JSONL file."""
    return _ENCODE(record).encode("utf-8", "surrogatepass") + b"\n"


def json_document(value: Any) -> bytes:
    """Write a whole JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")


def json_item(value: Any) -> bytes:
    """Write an item of a list that is a whole JSON file."""
    return json_document(value).replace(b"\n", b"\n  ")
