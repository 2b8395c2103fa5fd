"""A slow, obvious v4.0 exporter, written from the contract's text alone: whole dictionaries through ``json.dumps``.

Nothing of ``ensemble_assets`` is used here or in ``reference_loader``, so that the fast program has something
independent to agree with.
"""

from __future__ import annotations

import hashlib
import json
import math
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

NAMES = {
    "*qdrant*": "qdrant_ecosystem",
    "*sentence*": "sentence_transformers",
    "*docling*": "docling",
    "*fast_docs*": "fast_docs",
    "*pydantic*": "pydantic",
}
PRIORITIES = {"qdrant_ecosystem": 1.0, "sentence_transformers": 0.9, "docling": 0.8, "fast_docs": 0.7, "pydantic": 0.6}


def canonical(folder: str) -> str:
    """The name that version 4.0 gave to a collection's folder."""
    plain = "".join("_" if c == "-" or c.isspace() else c for c in folder.strip().lower())
    return next((name for keyword, name in NAMES.items() if fnmatchcase(plain, keyword)), plain)


def line(record: Any) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def document(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def metadata_echo(features: Any) -> dict[str, Any] | None:
    """The sparse vector that repeats ``sparse_features.term_weights``."""
    entries = features.get("term_weights") if isinstance(features, dict) else None
    usable = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("term"), str):
            weight = entry.get("weight")
            # Not finite, or too large for the sum of squares: a deliberate difference, such weights are dropped.
            if isinstance(weight, (int, float)) and -1e15 <= weight <= 1e15:
                usable.append((entry["term"], np.float32(weight)))
    if not usable:
        return None
    norm = np.float32(math.sqrt(np.float32(math.fsum(float(np.float32(w * w)) for _, w in usable))))
    return {
        "indices": [int(hashlib.sha1(term.encode()).hexdigest()[:8], 16) for term, _ in usable],
        "values": [float(w / norm) if norm > 0 else float(w) for _, w in usable],
        "tokens": [term for term, _ in usable],
        "stats": {
            "weight_norm": float(norm),
            "unique_terms": features.get("unique_terms", len(usable)),
            "total_terms": features.get("total_terms", 0),
            "weighting": features.get("weighting", "tf-normalized"),
        },
    }


def sparse_line(row: int, vector: dict[str, Any] | None) -> bytes:
    """A line of the sparse file, from the sparse vector of a point."""
    v = vector or {"indices": [], "values": [], "tokens": [], "stats": {}}
    inner = {"indices": v["indices"], "values": v["values"]}
    return line({"id": row, "sparse_vector": inner, "tokens": v["tokens"], "stats": v["stats"]})


def quality(count: Any) -> float:
    """A thousandth of the count, also of one written as text, and at most 1."""
    if isinstance(count, str):
        try:
            count = float(count)
        except ValueError:
            return 0.0
    if not isinstance(count, (int, float)):
        return 0.0
    return 1.0 if count > 1000 else min(1.0, float(max(count, -(10**300))) / 1000.0)


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


def enrich(  # noqa: C901  (one straight list of the contract's sentences)
    own: dict[str, Any], raw: str, text: str, row: int, source: str, facts: dict[str, Any]
) -> dict[str, Any]:
    m = dict(own)
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
        hints = [facts.get("point_name", facts["collection"])]
    m["global_chunk_id"] = row
    m["collection_priority"] = facts["priority"]
    m["quality_score"] = quality(own.get("token_count"))
    m["text_preprocessing_applied"] = True
    m["original_length"] = len(raw)
    m["processed_length"] = len(text)
    m["full_text_length"] = len(raw)
    m["kaggle_processing_timestamp"] = facts["clock"]
    m["model_target"] = facts["model"]
    m["embedding_dimension"] = facts["dimension"]
    m["qdrant_collection"] = facts.get("point_name", facts["collection"])
    m["collection_alias"] = facts.get("alias", facts["collection"])
    m["collection_hints"] = hints
    m["hierarchy_path"] = path
    m["qdrant_collection_hint"] = hints
    m.setdefault("payload_version", "1.2")
    m.setdefault("source_path", m.get("source_file") or m.get("filename") or source)
    m.setdefault("source_file", m["source_path"])
    m.setdefault("source_filename", PurePosixPath(str(m["source_file"])).name)
    m.setdefault("document_name", PurePosixPath(str(m["source_file"])).stem)
    m["chunk_hash"] = m.get("chunk_hash") or hashlib.sha1(raw.encode()).hexdigest()[:16]
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
    vector = metadata_echo(own.get("sparse_features"))
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
    echoes = [metadata_echo(own.get("sparse_features")) for _, own, _ in chunks]
    points, sparse = [], []
    for i, m in enumerate(metadata):
        payload = dict(m)
        payload["text_preview"] = texts[i][:500]
        payload["full_text_length"] = len(texts[i])
        payload["kaggle_export_timestamp"] = facts["clock"]
        payload["model_info"] = {"name": slug, "hf_model_id": hf_id, "dimension": vectors.shape[1], "version": "v4"}
        if models[1:]:
            payload["model_info"]["companions"] = {
                name: {"dimension": array.shape[1], "hf_model_id": hf} for name, hf, _, array in models[1:]
            }
        payload["primary_vector_name"] = slug
        payload["dense_vector_names"] = [name for name, _, _, _ in models]
        if models[1:]:
            payload["companion_vector_dimensions"] = {name: array.shape[1] for name, _, _, array in models[1:]}
        if echoes[i]:
            payload["sparse_vector"] = echoes[i]
        points.append({"id": i, "payload": payload, "vectors": {s: v[i].tolist() for s, _, _, v in models}})
        sparse.append(sparse_line(i, echoes[i]))
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
        f"{prefix}_qdrant.jsonl": b"".join(map(line, points)),
        f"{prefix}_metadata.json": document(metadata),
        f"{prefix}_texts.json": document(texts),
        f"{prefix}_stats.json": document(stats),
    }
    if any(echoes):
        made[f"{prefix}_sparse.jsonl"] = b"".join(sparse)
    return made


def without_additions(record: dict[str, Any]) -> None:
    """Put the echo back in place of a live sparse vector, which is known by the keys that its ``stats`` gained."""
    if "index_space" in record.get("sparse_vector", {}).get("stats", {}):
        record["sparse_vector"] = metadata_echo(record.get("sparse_features"))
        if record["sparse_vector"] is None:
            del record["sparse_vector"]


def v40_part(folder: Path, prefix: str = "ultimate_embeddings_v4") -> dict[str, bytes]:
    """The text files of the v4.0 bundle that is in a bundle's folder, by name: without all that v4.1 adds."""
    points = [json.loads(each) for each in (folder / f"{prefix}_qdrant.jsonl").open("rb")]
    metadata = json.loads((folder / f"{prefix}_metadata.json").read_bytes())
    for record in (*(point["payload"] for point in points), *metadata):
        without_additions(record)
    stats = json.loads((folder / f"{prefix}_stats.json").read_bytes())
    stats.get("sparse_vector_stats", {}).pop("live", None)
    echoes = [record["payload"].get("sparse_vector") for record in points]
    made = {
        f"{prefix}_qdrant.jsonl": b"".join(map(line, points)),
        f"{prefix}_metadata.json": document(metadata),
        f"{prefix}_texts.json": (folder / f"{prefix}_texts.json").read_bytes(),
        f"{prefix}_stats.json": document(stats),
    }
    if any(echoes):
        made[f"{prefix}_sparse.jsonl"] = b"".join(sparse_line(row, vector) for row, vector in enumerate(echoes))
    return made
