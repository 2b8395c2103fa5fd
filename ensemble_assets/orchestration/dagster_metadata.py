"""What asset metadata and check metadata may say: every key with its meaning, and which values it takes.

One table. A key that is not here, or a value that its check does not know, is dropped and counted
(``dropped_metadata``). ``docs/telemetry.md`` lists the same keys; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ensemble_assets.telemetry.allowed_names import FIELDS, OUTCOMES, STAGES
from ensemble_assets.telemetry.allowed_values import Field, Scalar, count, flag, number, shape, word
from ensemble_assets.telemetry.ids import public_name

DROPPED = "dropped_metadata"
_UNITS = ("chunks", "queries", "chunks and queries", "pairs", "points", "judged queries")
_BACKENDS = r"(torch|openvino|none)(,(torch|openvino|none))*"
_FIXED_WORD = r"(reference|none|[a-z0-9]+(_[a-z0-9]+)+)(,(reference|none|[a-z0-9]+(_[a-z0-9]+)+))*"
_LISTS = ("dense", "sparse", "lexical", "fused", "reranked")
_MEASURES = ("nDCG@10", "MRR@10", "recall@100", "MAP")


def _name(meaning: str) -> Field:
    """A name that the operator chose; shown as a hash where it is no plain name."""
    return Field(
        meaning, "plain name, else its hash", lambda value, _: public_name(value) if isinstance(value, str) else None
    )


def _source(value: object, known: Mapping[str, frozenset[str]]) -> Scalar | None:
    return value if value in ("file", "derived probes") else count("").check(value, known)


METADATA: MappingProxyType[str, Field] = MappingProxyType(
    {
        # every asset
        "wall_seconds": number("wall time of the step's work, seconds"),
        "status": word("how much of the work went as asked", (*OUTCOMES, "failed")),
        "unit": word("what `items` counts", _UNITS),
        "dagster/row_count": count("rows of the artefact"),
        # stages
        "stage": word("stage", STAGES),
        "device": FIELDS["device"],
        "precision": FIELDS["precision"],
        "seconds": number("wall time of the stage's computing, seconds"),
        "tokens": count("tokens that went through the model"),
        "items": count("chunks, queries or pairs; `unit` says which"),
        "truncated": count("items that lost tokens to the model's limit"),
        "tokens_dropped": count("how many tokens they lost"),
        "peak_bytes": count("highest memory seen, bytes"),
        "precision_redone": count("items computed again in fp32"),
        "fallback_count": count("items that did not get what was asked for"),
        "queries": count("queries"),
        "candidates": count("candidates of all queries"),
        "depth": count("candidates per query"),
        "requested_depth": count("rerank depth asked for"),
        "reached_depth": count("rerank depth that every query reached"),
        "budget_seconds": number("time the stage may take, seconds"),
        "budget": word("what limits rerank", ("sla", "own_dense", "off")),
        "budget_reason": word("why nothing limits rerank", ("budget_off", "no_baseline", "costs_unknown")),
        "floor_depth": count("rerank depth that is reached whatever it takes"),
        "queries_cut_short": count("queries of which fewer candidates were scored than asked for"),
        "coverage_ratio": number("share of chunks with a sparse vector, 0 to 1"),
        "dimension": count("width of the index space"),
        "files": count("files of the bundle"),
        "tokens_per_second": number("tokens over seconds"),
        "alias": _name("folder name of the collection"),
        "content": shape("hash of the chunks' content in order", "32 hex digits", "[0-9a-f]{32}"),
        "source_fingerprint": shape("content hash of the collection's files", "32 hex digits", "[0-9a-f]{32}"),
        "skipped": count("chunks left out"),
        "texts_cut": count("texts cut at the contract's length"),
        "searched": word("what of a chunk sparse vectors, BM25 and the reranker read", ("whole", "exported")),
        "query_source": word("where the queries came from", ("file", "derived")),
        "judgements": Field(
            "relevance judgements, or in checks where they are from",
            "whole number ≥ 0, `file` or `derived probes`",
            _source,
        ),
        "judged": flag("whether any query has judgements"),
        "model": _name("model"),
        "index_space": shape(
            "what sparse indices number",
            "`vocabulary-` and a hash, `terms-of-this-collection`",
            r"vocabulary-[0-9a-f]{8,64}|terms-of-this-collection",
        ),
        "vectors_total": count("chunks"),
        "vectors_live": count("chunks with a vector from inference"),
        "vectors_from_metadata": count("chunks with a vector from metadata terms"),
        "vectors_available": count("chunks with a vector"),
        "entries": count("entries of all sparse vectors"),
        "queries_live": count("queries with a sparse vector"),
        "queries_pruned": count("query vectors cut to `top_k`"),
        "top_k": count("most entries of a sparse vector"),
        "method": FIELDS["method"],
        "dense_share": number("weight of the dense list, 0 to 1"),
        "lexical_share": number("weight of the BM25 list, 0 to 1"),
        "query_count": count("queries"),
        "queries_reranked": count("queries with a reranked list"),
        "pairs_scored": count("pairs that the reranker scored"),
        "weight": number("share of the reranker in the final score"),
        "largest_batch": count("pairs in the largest batch"),
        "backend": shape("what ran the model", "`torch`, `openvino`, `none`", _BACKENDS),
        "backend_reason": shape("why that backend", "fixed words", _FIXED_WORD),
        "reused": count("items whose result was taken from an earlier materialisation"),
        "without_relevant": count("queries without a relevant chunk"),
        **{
            f"{name} {measure}": number(f"mean {measure} of the {name} lists")
            for name in _LISTS
            for measure in _MEASURES
        },
        "fallback_source": FIELDS["source"],
        "points": count("points of the bundle"),
        "bytes": count("size of the bundle, bytes"),
        "collection_in_qdrant": _name("collection in Qdrant"),
        "sent": count("points sent"),
        "removed": count("points of earlier exports removed"),
        "searches": count("kinds of search by which a chunk found itself"),
        "bundle": shape("version of the bundle's artefact", "32 hex digits", "[0-9a-f]{32}"),
        # checks
        "records": count("records looked at"),
        "rows": count("rows looked at"),
        "arrays": count("arrays looked at"),
        "largest_norm_error": number("largest distance of a norm from 1"),
        "total": count("chunks"),
        "available": count("chunks with a sparse vector"),
        "fallbacks": count("queries that kept their fused order"),
        "places": count("places searched"),
        "bytes_searched": count("bytes searched"),
        "weak_queries": count("queries too short to be told from ordinary words"),
        "ceiling_bytes": count("memory ceiling, bytes"),
        "vs_sla": number("seconds of the whole run over the plain script's dense stage"),
        "vs_own_dense": number("seconds of dense, sparse, fusion and rerank over those of dense"),
        "limit_ratio": number("largest ratio to the baseline"),
        "problems": count("problems found"),
        **{f"{stage}_peak_bytes": count(f"peak memory of {stage}, bytes") for stage in STAGES},
        **{f"{stage}_seconds": number(f"seconds of {stage}") for stage in STAGES},
        **{name: number(f"mean of the {name} lists") for name in _LISTS},
        "weakest": number("mean of the weakest single list"),
        "strongest": number("mean of the strongest single list"),
        "delta": number("difference of means"),
        "delta_low": number("lower end of its 95 % interval"),
        "delta_high": number("upper end of its 95 % interval"),
        "p_value": number("of a paired randomisation test"),
        "epsilon": number("loss that is tolerated"),
        DROPPED: count("keys and values that this list kept out"),
    }
)

PICTURES: MappingProxyType[str, str] = MappingProxyType(
    {
        "token_counts": "histogram of tokens per chunk",
        "report": "what was left out or changed on reading, by reason",
        "query_lengths": "histogram of query lengths",
        "model_seconds": "seconds per model",
        "terms_per_chunk": "histogram of sparse entries",
        "fused_scores": "histogram of scores",
        "nDCG@10": "bars of mean nDCG@10",
        "places_moved": "histogram of places moved by reranking",
        "bundle": "where the bundle is",
        "contents": "files of the bundle with their sizes",
        "dagster/column_schema": "names and types of the table's columns",
        "dagster/column_lineage": "which columns a column is made of",
        "run_report": "where the page about the run is",
        "stage_times": "stages one after another, against the dense-only baseline and its limit",
        "memory_over_time": "memory of each device against the ceiling",
        "scores": "distributions of dense, sparse, fused and reranker scores",
        "rerank_moves": "how far reranking moved candidates",
        "coverage": "chunks with a sparse vector",
        "fallback_reasons": "fallbacks by stage, reason and what stood in",
        "toggles": "settings of the optional stages and where they came from",
        "quality": "means per list and measure, over the judged queries",
        "details": "what a check found: records and keys, never texts",
        "notes": "what a check did not look at, and why",
    }
)
"""Metadata that is a picture, a table, a path or sentences of this package; made by its own code from figures."""


def admitted_metadata(facts: Mapping[str, object], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """What of a step's facts may be shown.

    Args:
        facts: by key; None means "no value" and is left out without being counted.
        pictures: by key.

    Returns:
        Both together, with ``dropped_metadata`` where something was kept out.
    """
    shown: dict[str, Scalar | Any] = {}
    dropped = 0
    for name, value in facts.items():
        field = METADATA.get(name)
        plain = field.check(value, {}) if field is not None and value is not None else None
        if plain is not None:
            shown[name] = plain
        dropped += plain is None and value is not None
    kept = {name: picture for name, picture in pictures.items() if name in PICTURES}
    dropped += len(pictures) - len(kept)
    return {**shown, **kept, **({DROPPED: dropped} if dropped else {})}
