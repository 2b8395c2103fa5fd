"""Name and type the columns of every frame that one stage hands to another."""

from __future__ import annotations

from types import MappingProxyType

import polars as pl

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stages import first_stage_lists

Schema = MappingProxyType[str, pl.DataType]


def _schema(**columns: pl.DataType | type[pl.DataType]) -> Schema:
    return MappingProxyType({name: dtype() if isinstance(dtype, type) else dtype for name, dtype in columns.items()})


CHUNKS = _schema(
    row=pl.UInt32,  # 0-based position in the collection; the point id of exports and the row of every array
    chunk_id=pl.String,  # unique; what qrels, runs and candidates name
    text=pl.String,  # what is embedded and exported: whitespace collapsed, cut at the contract's length
    rest=pl.String,  # what was cut off, if it is searched; else empty. See ``whole_text``
    metadata=pl.String,  # the chunk's own metadata as JSON, keys in their original order
    heading=pl.String,  # nullable
    source=pl.String,  # file path relative to the collection folder, POSIX
    position=pl.UInt32,  # 0-based record (JSON list) or line (JSONL) in the source file
    original_length=pl.UInt32,  # characters before whitespace was collapsed
    token_count=pl.UInt32,  # the chunk's own count, else estimated from its words
    text_sha1=pl.String,  # 40 hex digits, SHA-1 of the original text in UTF-8
    modal_hint=pl.String,  # what the original text looks like: code, table, json or prose
    content_hash=pl.String,  # 32 hex digits, BLAKE2b-128 of ``text``: the key of incremental work
    cut=pl.Boolean,  # whether the text was cut at the contract's length
)
"""One row per chunk, in collection order."""

QUERIES = _schema(
    query_id=pl.String,  # the id as given; stays inside this artefact
    text=pl.String,  # stays inside this artefact
    public_id=pl.String,  # what every other artefact uses: the id, or its keyed hash where the id is itself text
    query_hash=pl.String,  # 32 hex digits, HMAC-SHA-256 of the text under the deployment's key
)
"""One row per query, in file order (derived probes: in chunk order)."""

QRELS = _schema(
    public_id=pl.String,
    chunk_id=pl.String,
    relevance=pl.Int32,  # graded; at most 0 means judged not relevant
)
"""Relevance judgements."""

RUN = _schema(
    public_id=pl.String,
    rank=pl.UInt32,  # 1-based
    row=pl.UInt32,  # chunk row
    score=pl.Float32,
)
"""One ranked list per query: sorted by public_id in query order, then rank."""

FUSED = _schema(
    public_id=pl.String,
    rank=pl.UInt32,  # 1-based fused rank
    row=pl.UInt32,
    chunk_id=pl.String,
    score=pl.Float32,  # fused score
)
"""Fused candidates, in the order of their queries and ranks."""

CANDIDATES = _schema(
    **FUSED,
    **{
        f"{name}_{column}": dtype
        for name in first_stage_lists()
        for column, dtype in (("rank", pl.UInt32), ("score", pl.Float32))
    },
)
"""``FUSED``, then ``<list>_rank`` and ``<list>_score`` of every first-stage list; null where it lacks the chunk."""

RERANKED = _schema(
    public_id=pl.String,
    rank=pl.UInt32,  # 1-based final rank
    row=pl.UInt32,
    chunk_id=pl.String,
    score=pl.Float32,  # final (interpolated) score; the fused score where the reranker did not run
    fused_rank=pl.UInt32,
    fused_score=pl.Float32,
    rerank_score=pl.Float32,  # the reranker's score; null where it did not score the pair
    late_score=pl.Float32,  # late interaction's score beside it; null where it did not score the pair
    reranked=pl.Boolean,  # whether any of them scored this pair
)
"""Reranked lists; fused order kept and flagged where rerank is off or failed."""


def conform(frame: pl.DataFrame, schema: Schema, title: str) -> pl.DataFrame:
    """Return the frame with exactly the schema's columns, in order; ``ArtefactError`` names every mismatch."""
    wrong = [
        f"{name}: expected {dtype}, found {frame.schema.get(name, 'no such column')}"
        for name, dtype in schema.items()
        if frame.schema.get(name) != dtype
    ]
    if wrong:
        raise ArtefactError(f"{title} does not have the expected columns: {'; '.join(wrong)}. Materialise it again")
    return frame.select(list(schema))
