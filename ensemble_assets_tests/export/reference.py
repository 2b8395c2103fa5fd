"""A slow, obvious v4.0 exporter, written from the contract's text alone: whole dictionaries through ``json.dumps``.

The records are those of ``export.checks.v40_reference``; nothing else of ``ensemble_assets`` is used here, so that the
fast exporter has something independent to agree with.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ensemble_assets.export.checks.v40_reference import (
    Model,
    json_document,
    json_line,
    metadata_echo,
    point,
    sparse_record,
    without_additions,
)


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
    described = [Model(name, hf, array.shape[1]) for name, hf, _, array in models]
    points, sparse = [], []
    for i, m in enumerate(metadata):
        rows = {s: v[i].tolist() for s, _, _, v in models}
        record = point(i, m, texts[i], described, facts["clock"], rows)
        if echoes[i]:
            record["payload"]["sparse_vector"] = echoes[i]
        points.append(record)
        sparse.append(sparse_record(i, echoes[i]))
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
        f"{prefix}_qdrant.jsonl": b"".join(map(json_line, points)),
        f"{prefix}_metadata.json": json_document(metadata),
        f"{prefix}_texts.json": json_document(texts),
        f"{prefix}_stats.json": json_document(stats),
    }
    if any(echoes):
        made[f"{prefix}_sparse.jsonl"] = b"".join(map(json_line, sparse))
    return made


def v40_part(folder: Path, prefix: str = "ultimate_embeddings_v4") -> dict[str, bytes]:
    """The text files of the v4.0 bundle that is in a bundle's folder, by name: without all that v4.1 adds."""
    points = [json.loads(line) for line in (folder / f"{prefix}_qdrant.jsonl").open("rb")]
    for record in points:
        record["payload"] = without_additions(record["payload"])
    metadata = json.loads((folder / f"{prefix}_metadata.json").read_bytes())
    stats = json.loads((folder / f"{prefix}_stats.json").read_bytes())
    stats.get("sparse_vector_stats", {}).pop("live", None)
    echoes = [record["payload"].get("sparse_vector") for record in points]
    made = {
        f"{prefix}_qdrant.jsonl": b"".join(map(json_line, points)),
        f"{prefix}_metadata.json": json_document(list(map(without_additions, metadata))),
        f"{prefix}_texts.json": (folder / f"{prefix}_texts.json").read_bytes(),
        f"{prefix}_stats.json": json_document(stats),
    }
    if any(echoes):
        records = (sparse_record(row, echo) for row, echo in enumerate(echoes))
        made[f"{prefix}_sparse.jsonl"] = b"".join(map(json_line, records))
    return made
