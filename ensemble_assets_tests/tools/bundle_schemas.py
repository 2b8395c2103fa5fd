"""Write the JSON Schemas of bundles, ``docs/schema/*.json``, from the key tables of the gates.

``python -m ensemble_assets_tests.tools.bundle_schemas`` writes them anew. The package has the tables of v4.0; the
tables of the keys that v4.1 adds stand here. A v4.0 schema is strict: an object to which v4.1 adds keys has no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.export.checks.key_tables import (
    ANY,
    COUNT,
    FLAG,
    INTEGER,
    MANIFEST,
    NUMBER,
    NUMBERS,
    OBJECT,
    PAYLOAD_TAIL,
    SPARSE_RECORD,
    SPARSE_STATS,
    SPARSE_VECTOR,
    STATS,
    TEXT,
    TEXTS,
    WIDTH,
    Key,
    Kind,
)

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schema"
Schema = dict[str, Any]


def kind(schema: Mapping[str, Any]) -> Kind:
    """A kind that only schemas know."""
    return Kind("", lambda value: True, schema)


def word(*words: object) -> Kind:
    """One of some fixed values."""
    return kind({"const": words[0]} if len(words) == 1 else {"enum": list(words)})


def table(keys: tuple[Key, ...], *, closed: bool = False, **replaced: Schema) -> Schema:
    """The schema of an object.

    Args:
        keys: its key table.
        closed: whether it has no other keys.
        replaced: schemas that stand in place of the table's, by key.
    """
    properties = {key.name: replaced.get(key.name) or value(key) for key in keys}
    closing = {"additionalProperties": False} if closed else {}
    required = [key.name for key in keys if key.required]
    return {"type": "object", "required": required, "properties": properties, **closing}


def value(key: Key) -> Schema:
    """The schema of a key's value."""
    if key.inside:
        return table(key.inside)
    if key.each:
        return {"type": "object", "additionalProperties": table(key.each)}
    return dict(key.kind.schema)


def each(schema: Mapping[str, Any]) -> Kind:
    """An object with free keys."""
    return kind({"type": "object", "additionalProperties": dict(schema)})


def optional(name: str, of: Kind) -> Key:
    """A key that need not be there."""
    return Key(name, of, required=False)


LIVE_STATS = (
    *SPARSE_STATS,
    Key("source", word("live", "metadata")),
    Key("model", TEXT),
    Key("index_space", TEXT),
    optional("norm", word("as_inferred", "unit")),
)
LIVE_COUNTS = (
    Key("model", TEXT),
    Key("sparse_vectors_available", INTEGER),
    Key("from_metadata", INTEGER),
    Key("coverage_ratio", NUMBER),
)
VECTORS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {**NUMBERS.schema, "minItems": 1},
}
PROVENANCE = kind(
    {
        "type": "array",
        "items": table((Key("key", TEXT), Key("value", ANY), Key("source", TEXT), Key("layer", TEXT))),
    }
)
TOGGLES = (
    Key("enable_rerank", FLAG),
    Key("enable_sparse", FLAG),
    Key("sparse_models", TEXTS),
    Key("sources", each(TEXT.schema)),
    Key("provenance", PROVENANCE),
    Key("provenance_lines", TEXTS),
)
SPAN = (
    Key("span_id", TEXT),
    Key("status", word("active", "skipped")),
    Key("attributes", OBJECT),
    Key("timestamp", TEXT),
    optional("reason", TEXT),
)
METRIC = (
    Key("status", word("emitted", "skipped")),
    Key("metrics", kind({"type": "array"})),
    optional("reason", TEXT),
)
TELEMETRY = (
    Key("spans", kind(table(tuple(Key(f"rag.{name}", OBJECT, inside=SPAN) for name in TIMED_STAGES), closed=True))),
    Key("metrics", kind(table(tuple(Key(name, OBJECT, inside=METRIC) for name in TIMED_STAGES), closed=True))),
    Key("lease_events_recorded", COUNT),
    Key("batch_progress_events_recorded", COUNT),
    Key("mitigation_events_recorded", COUNT),
    optional("rotation_events_recorded", COUNT),
)
BUDGET = (
    Key("against", word("sla", "own_dense", "off")),
    optional(
        "budget_seconds",
        kind(
            {
                "type": "number",
                "description": "Seconds for rerank; negative where the stages before it took too long.",
            }
        ),
    ),
    optional("budget_reason", TEXT),
    optional("requested_depth", WIDTH),
    optional("reached_depth", COUNT),
    optional("floor_depth", WIDTH),
    optional("queries_cut_short", COUNT),
)


def _ratio(description: str) -> Kind:
    return kind({"type": "number", "minimum": 0, "description": description})


_TOKEN_VECTORS = (Key("model", TEXT), Key("width", COUNT), Key("tokens", COUNT), Key("chunks_without", COUNT))
BASELINE = (
    optional(
        "dense_only_seconds",
        kind(
            {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Seconds of the plain script for these chunks, measured beforehand; absent without a "
                "stored baseline.",
            }
        ),
    ),
    optional("limit_ratio", kind({"type": "number", "minimum": 1})),
    optional(
        "vs_sla",
        _ratio(
            "(dense + sparse + fusion + rerank + export) / dense_only_seconds; export up to the moment that this file "
            "was written."
        ),
    ),
    optional("vs_own_dense", _ratio("(dense + sparse + fusion + rerank) / dense, of this run.")),
    optional("stage_seconds", each({"type": "number", "minimum": 0})),
    optional("precision", each(TEXT.schema)),
    optional("one_run", kind({"type": "boolean", "description": "Whether all stages are of one run."})),
    Key("budget", OBJECT, required=False, inside=BUDGET),
    optional("measured", kind({"type": "object", "description": "The origin of dense_only_seconds."})),
    optional("not_measured", TEXT),
    optional(
        "prediction",
        kind({"type": "object", "description": "The prediction of ensemble-assets plan beside the measured seconds."}),
    ),
)
RERANK_PAYLOAD = (
    Key("run_id", TEXT),
    Key("latency_ms", NUMBER),
    Key("gpu_peak_gb", NUMBER),
    Key("batch_size", INTEGER),
    Key("top_k_candidates", INTEGER),
    Key("rerank_top_k", INTEGER),
    Key("result_count", INTEGER),
    Key("initial_candidate_count", INTEGER),
    Key("candidate_ids", TEXTS),
    Key("scores", NUMBERS),
    optional("status", word("executed", "staged", "pending")),
    optional("device_state", kind({"type": "object"})),
    optional("dense_scores", kind({"type": "array", "items": {"type": ["number", "null"]}})),
    optional(
        "candidate_metadata",
        kind(
            {
                "type": "array",
                "items": table(
                    (Key("point_id", COUNT), Key("rank", COUNT), Key("fused_rank", COUNT), Key("reranked", FLAG)),
                    closed=True,
                ),
            }
        ),
    ),
)
RERANK = (
    Key("enabled", word(True)),
    Key("executed", FLAG),
    Key("status", TEXT),
    Key("model_name", TEXT),
    Key("loaded", FLAG),
    Key("device", TEXT),
    Key(
        "device_state",
        OBJECT,
        inside=(
            Key("requested", TEXT),
            Key("resolved", TEXT),
            Key("fallback_applied", FLAG),
            optional("fallback_reason", TEXT),
        ),
    ),
    Key("fallback_count", COUNT),
    Key("payload", OBJECT),
    optional("fallback_reason", TEXT),
    optional("fallback_source", TEXT),
    optional("latency_ms", NUMBER),
    optional("batch_size", INTEGER),
    optional("outcome", TEXT),
)
DENSE = (
    optional("total_embeddings_generated", COUNT),
    optional("models_executed", TEXTS),
    optional("similarity", each({"const": "dot"})),
    optional("combination", word("zscore")),
    Key("unread", OBJECT, required=False, inside=(Key("texts", COUNT), Key("of", COUNT), Key("writing", TEXT))),
    Key("token_vectors", OBJECT, required=False, inside=_TOKEN_VECTORS),
)
SPARSE = (
    Key("enabled", word(True)),
    Key("executed", FLAG),
    Key("models", TEXTS),
    Key("model_names", TEXTS),
    Key(
        "vectors",
        OBJECT,
        inside=(
            Key("total", COUNT),
            Key("available", COUNT),
            Key("coverage_ratio", kind({"type": "number", "minimum": 0, "maximum": 1})),
        ),
    ),
    Key("devices", each(TEXT.schema)),
    Key("fallback_used", FLAG),
    Key("fallback_count", COUNT),
    Key("latency_ms", NUMBER),
    Key("run_id", TEXT),
    Key("success", FLAG),
    Key("device", TEXT),
    optional("fallback_reason", TEXT),
)


def schemas() -> dict[str, Schema]:
    """Every schema by file name."""
    made = {}
    for version in ("v4.0", "v4.1"):
        parts = {
            "point": ("A line of <prefix>_qdrant.jsonl", _point(version)),
            "sparse_record": ("A line of <prefix>_sparse.jsonl", _sparse_record(version)),
            "stats": ("<prefix>_stats.json", _statistics(version)),
            "manifest": ("processing_summary.json", _manifest_v40() if version == "v4.0" else _manifest_v41()),
        }
        for name, (title, schema) in parts.items():
            heading = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{title}, {version}"}
            made[f"{name}_{version}.schema.json"] = {**heading, **schema}
    return made


def _stats_of_vectors(version: str) -> list[Schema]:
    echo = table(SPARSE_STATS, closed=True)
    return [echo] if version == "v4.0" else [table(LIVE_STATS), echo]


def _point(version: str) -> Schema:
    vectors = [table(SPARSE_VECTOR, stats=stats) for stats in _stats_of_vectors(version)]
    payload = table(PAYLOAD_TAIL, sparse_vector=vectors[0] if len(vectors) == 1 else {"anyOf": vectors})
    keys = (Key("id", COUNT), Key("payload", OBJECT), Key("vectors", OBJECT))
    return table(keys, closed=True, payload=payload, vectors=VECTORS)


def _sparse_record(version: str) -> Schema:
    stats = {"anyOf": [{"type": "object", "maxProperties": 0}, *_stats_of_vectors(version)]}
    [inner] = (key.inside for key in SPARSE_RECORD if key.name == "sparse_vector")
    return table(SPARSE_RECORD, closed=True, sparse_vector=table(inner, closed=True), stats=stats)


def _statistics(version: str) -> Schema:
    [counts] = (key.inside for key in STATS if key.name == "sparse_vector_stats")
    if version == "v4.0":
        return table(STATS, closed=True, sparse_vector_stats=table(counts, closed=True))
    live = Key("live", OBJECT, required=False, inside=LIVE_COUNTS)
    return table(STATS, sparse_vector_stats=table((*counts, live)))


def _manifest_v40() -> Schema:
    schema = table(MANIFEST)
    return {**schema, "required": []}  # a reader fills what an old manifest lacks


def _manifest_v41() -> Schema:
    sections = (
        Key("schema_version", word("v4.1")),
        Key("generated_at", TEXT),
        Key("collection", TEXT),
        Key("chunk_count", COUNT),
        Key("feature_toggles", OBJECT, inside=TOGGLES),
        Key("activation_provenance", PROVENANCE),
        Key("activation_provenance_lines", TEXTS),
        Key("dense_run", OBJECT, inside=DENSE),
        optional("weights", each(word("safetensors", "pickle").schema)),
        Key("fusion_run", OBJECT, required=False, inside=(optional("lexical_words", TEXTS),)),
        optional("records_written_at", TEXT),
        Key("compatibility", OBJECT),
        Key("telemetry", OBJECT, inside=TELEMETRY),
        Key("performance_baseline", OBJECT),
        Key("rerank_run", OBJECT, required=False),
        Key("sparse_run", OBJECT, required=False),
        Key("warnings", TEXTS, required=False),
        Key("ensemble_state", OBJECT, required=False),
    )
    payload = table(RERANK_PAYLOAD)
    payload["properties"]["query"] = False  # old manifests kept the text of a query there
    legacy = kind({"type": "array", "contains": {"const": "v4.0"}})
    schema = table(
        sections,
        compatibility=table((Key("current", word("v4.1")), Key("legacy", legacy))),
        performance_baseline={
            "description": "Both latency ratios and their parts; see docs/performance.md.",
            **table(BASELINE),
        },
        rerank_run=table(RERANK, payload=payload),
        sparse_run=table((*SPARSE, Key("payload", OBJECT, inside=SPARSE))),
    )
    return {**schema, "allOf": [_only_if_enabled("rerank"), _only_if_enabled("sparse")]}


def _only_if_enabled(stage: str) -> Schema:
    enabled = {"properties": {"feature_toggles": {"properties": {f"enable_{stage}": {"const": True}}}}}
    run = {"required": [f"{stage}_run"]}
    return {"if": enabled, "then": run, "else": {"not": run}}


def text(schema: Schema) -> str:
    """A schema as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text(schema), encoding="utf-8")
