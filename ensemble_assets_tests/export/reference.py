"""A slow, obvious v4.0 exporter, written from the contract's text alone: whole dictionaries through ``json.dumps``.

Nothing of ``ensemble_assets`` is used here, so that the fast exporter has something independent to agree with.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import PurePosixPath
from typing import Any

import numpy as np


def prepare(raw: str, max_tokens: int) -> str:
    text = " ".join(raw.split())
    return text if len(text) <= 4 * max_tokens else text[: 4 * max_tokens] + "..."


def hint_by_text(raw: str) -> str:
    start = raw.strip().lower()[:400]
    if "```" in raw or "def " in start or "class " in start:
        return "code"
    if any(line.startswith("|") for line in raw.split("\n")[1:]):
        return "table"
    if start.startswith(("{", "[")):
        return "json"
    return "prose"


def echo(features: Any) -> dict[str, Any] | None:
    if not isinstance(features, dict) or not isinstance(features.get("term_weights"), list):
        return None
    terms: list[str] = []
    weights: list[float] = []
    for entry in features["term_weights"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("term"), str):
            continue
        weight = entry.get("weight")
        if not isinstance(weight, (int, float)) or not abs(weight) <= 1e15:
            continue
        terms.append(entry["term"])
        weights.append(float(np.float32(weight)))
    if not terms:
        return None
    squares = [float(np.float32(w) * np.float32(w)) for w in weights]
    norm = float(np.float32(math.sqrt(float(np.float32(math.fsum(squares))))))
    return {
        "indices": [int(hashlib.sha1(term.encode()).hexdigest()[:8], 16) for term in terms],
        "values": [float(np.float32(w) / np.float32(norm)) if norm > 0 else w for w in weights],
        "tokens": terms,
        "stats": {
            "weight_norm": norm,
            "unique_terms": features.get("unique_terms", len(terms)),
            "total_terms": features.get("total_terms", 0),
            "weighting": features.get("weighting", "tf-normalized"),
        },
    }


def enrich(  # noqa: C901  (one straight list of the contract's sentences)
    own: dict[str, Any], raw: str, text: str, row: int, source: str, facts: dict[str, Any]
) -> dict[str, Any]:
    m = dict(own)
    count = own.get("token_count")
    counted = isinstance(count, (int, float)) and count != 0
    path = own.get("hierarchy_path")
    if not path:
        sections = own.get("section_path")
        sections = sections if isinstance(sections, (list, str, dict)) else []
        path = " > ".join(s.strip() for s in sections if isinstance(s, str) and s.strip())
    hints = own.get("collection_hints") or own.get("qdrant_collection_hint")
    if isinstance(hints, str):
        hints = [hints]
    elif isinstance(hints, list):
        hints = [h for i, h in enumerate(hints) if isinstance(h, str) and h not in hints[:i]]
    else:
        hints = [facts["collection"]]
    m["global_chunk_id"] = row
    m["collection_priority"] = facts["priority"]
    m["quality_score"] = min(1.0, float(min(count, 10**6)) / 1000.0) if counted else 0.0
    m["text_preprocessing_applied"] = True
    m["original_length"] = len(raw)
    m["processed_length"] = len(text)
    m["full_text_length"] = len(raw)
    m["kaggle_processing_timestamp"] = facts["clock"]
    m["model_target"] = facts["model"]
    m["embedding_dimension"] = facts["dimension"]
    m["qdrant_collection"] = facts["collection"]
    m["collection_alias"] = facts["collection"]
    m["collection_hints"] = hints
    m["hierarchy_path"] = path
    m["qdrant_collection_hint"] = hints
    m.setdefault("payload_version", "1.2")
    m.setdefault("source_path", m.get("source_file") or m.get("filename") or source)
    m.setdefault("source_file", m["source_path"])
    m.setdefault("source_filename", PurePosixPath(str(m["source_file"])).name)
    m.setdefault("document_name", PurePosixPath(str(m["source_file"])).stem)
    m.setdefault("chunk_hash", hashlib.sha1(raw.encode()).hexdigest()[:16])
    m.setdefault("content_digest", m["chunk_hash"])
    m.setdefault("content_type", "hierarchical_section")
    words = m.get("search_keywords", [])
    keywords = {w for w in (words if isinstance(words, (list, str, dict)) else []) if isinstance(w, str)}
    if isinstance(path, str):
        keywords |= {part.strip() for part in path.split(" > ")}
    heading = m.get("heading_text")
    if isinstance(heading, str) and heading.strip():
        keywords.add(heading)
    m["search_keywords"] = sorted(k for k in keywords if k)
    vector = echo(own.get("sparse_features"))
    if vector:
        m["sparse_vector"] = vector
    elif "sparse_vector" in m:
        del m["sparse_vector"]
    m["sparse_vector_tokens"] = vector["tokens"] if vector else []
    m["sparse_vector_weight_norm"] = vector["stats"]["weight_norm"] if vector else 0.0
    hint = own.get("modal_hint")
    flags = own.get("content_flags") if isinstance(own.get("content_flags"), dict) else {}
    if isinstance(hint, str) and hint.strip():
        hint = hint.strip()
    elif flags.get("has_table"):
        hint = "table"
    elif flags.get("has_code_block"):
        hint = "code"
    elif flags.get("has_list"):
        hint = "list"
    elif flags.get("has_json"):
        hint = "json"
    else:
        hint = hint_by_text(raw)
    m["modal_hint"] = hint
    m.setdefault("embedding_modal_hint", hint)
    if not m.get("document_id"):
        document = m.get("source_path") or m.get("source_file") or m.get("filename")
        if document:
            m["document_id"] = hashlib.md5(PurePosixPath(str(document)).as_posix().lower().encode()).hexdigest()[:12]
    return m


def files(
    chunks: list[tuple[str, dict[str, Any], str]],
    models: list[tuple[str, str, int, np.ndarray]],
    facts: dict[str, Any],
    prefix: str = "ultimate_embeddings_v4",
) -> dict[str, bytes]:
    """Every v4.0 file but the index and the upload script, by name.

    Args:
        chunks: (raw text, own metadata, source path).
        models: (slug, hf id, max tokens, vectors), the primary one first.
        facts: collection, priority, clock.
        prefix: of the file names.
    """
    slug, hf_id, max_tokens, vectors = models[0]
    facts = {**facts, "model": slug, "dimension": vectors.shape[1]}
    texts = [prepare(raw, max_tokens) for raw, _, _ in chunks]
    metadata = [enrich(own, raw, texts[i], i, source, facts) for i, (raw, own, source) in enumerate(chunks)]
    echoes = [echo(own.get("sparse_features")) for _, own, _ in chunks]
    info: dict[str, Any] = {"name": slug, "hf_model_id": hf_id, "dimension": vectors.shape[1], "version": "v4"}
    if models[1:]:
        info["companions"] = {s: {"dimension": v.shape[1], "hf_model_id": h} for s, h, _, v in models[1:]}
    points, sparse = [], []
    for i, m in enumerate(metadata):
        payload = dict(m)
        payload["text_preview"] = texts[i][:500]
        payload["full_text_length"] = len(texts[i])
        payload["kaggle_export_timestamp"] = facts["clock"]
        payload["model_info"] = info
        payload["primary_vector_name"] = slug
        payload["dense_vector_names"] = [s for s, _, _, _ in models]
        if models[1:]:
            payload["companion_vector_dimensions"] = {s: v.shape[1] for s, _, _, v in models[1:]}
        if echoes[i]:
            payload["sparse_vector"] = echoes[i]
        points.append({"id": i, "payload": payload, "vectors": {s: v[i].tolist() for s, _, _, v in models}})
        e = echoes[i] or {"indices": [], "values": [], "tokens": [], "stats": {}}
        vector = {"indices": e["indices"], "values": e["values"]}
        sparse.append({"id": i, "sparse_vector": vector, "tokens": e["tokens"], "stats": e["stats"]})
    stats: dict[str, Any] = {
        "kaggle_environment": False,
        "model_config": {
            "name": slug,
            "hf_model_id": hf_id,
            "vector_dimension": vectors.shape[1],
            "max_tokens": max_tokens,
        },
        "gpu_config": {"device_count": 1, "backend": "pytorch", "precision": "fp32", "total_vram_gb": 0.0},
        "embedding_stats": {
            "total_embeddings": len(chunks),
            "embedding_dimension": vectors.shape[1],
            "memory_usage_mb": vectors.nbytes / 1024 / 1024,
        },
        "processing_performance": {},
        "export_timestamp": facts["clock"],
    }
    if chunks:
        available = sum(1 for e in echoes if e)
        stats["sparse_vector_stats"] = {
            "total_chunks": len(chunks),
            "sparse_vectors_available": available,
            "coverage_ratio": available / len(chunks),
        }
    stats["dense_vector_layout"] = {
        s: {"dimension": v.shape[1], "memory_mb": v.nbytes / 1024 / 1024, "is_primary": s == slug}
        for s, _, _, v in models
    }
    made = {
        f"{prefix}_qdrant.jsonl": _lines(points),
        f"{prefix}_metadata.json": _pretty(metadata),
        f"{prefix}_texts.json": _pretty(texts),
        f"{prefix}_stats.json": _pretty(stats),
    }
    if any(echoes):
        made[f"{prefix}_sparse.jsonl"] = _lines(sparse)
    return made


def _lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
