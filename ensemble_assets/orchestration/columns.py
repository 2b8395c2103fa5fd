"""Columns of the tables that assets hold, and which column of which asset each one is made of, as Dagster shows it.

Arrays have no columns; assets that hold only arrays or files are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact

MAIN_TABLES: Mapping[str, str] = {
    "chunks": "chunks",
    "queries": "queries",
    "fused_candidates": "candidates",
    "reranked_candidates": "reranked",
}
"""The frame that stands for an asset, by asset."""

_Sources = Mapping[str, tuple[tuple[str, str], ...]]

_QUERY = (("queries", "public_id"),)
_CHUNK = (("chunks", "chunk_id"),)
_ROW = (("chunks", "row"),)
_TEXTS = (("chunks", "text"), ("queries", "text"))
_FUSED_SCORE = (("fused_candidates", "score"),)
_RERANK_SCORE = (*_TEXTS, *_FUSED_SCORE)

LINEAGE: Mapping[str, _Sources] = {
    "queries": {"text": (("chunks", "heading"),)},
    "fused_candidates": {
        "public_id": _QUERY,
        "chunk_id": _CHUNK,
        "row": _ROW,
        **dict.fromkeys(("rank", "score", "dense_rank", "dense_score", "sparse_rank", "sparse_score"), _TEXTS),
    },
    "reranked_candidates": {
        "public_id": (("fused_candidates", "public_id"),),
        "chunk_id": (("fused_candidates", "chunk_id"),),
        "row": (("fused_candidates", "row"),),
        "fused_rank": (("fused_candidates", "rank"),),
        "fused_score": _FUSED_SCORE,
        "rerank_score": _TEXTS,
        "score": _RERANK_SCORE,
        "rank": _RERANK_SCORE,
        "reranked": _FUSED_SCORE,
    },
}
"""Columns that a column is made of, as (asset, column). Scores come from texts by way of vectors, which have no
columns; query texts come from headings only where there is no query file."""


def column_metadata(asset: str, artefact: Artefact) -> dict[str, Any]:
    """``dagster/column_schema`` and, where it is known, ``dagster/column_lineage`` of a materialisation."""
    table = MAIN_TABLES.get(asset)
    if table is None or not artefact.has(table):
        return {}
    columns: Mapping[str, str] = artefact.index["files"][f"{table}.parquet"]["columns"]
    schema = dg.TableSchema([dg.TableColumn(name, dtype) for name, dtype in columns.items()])
    known = {name: sources for name, sources in LINEAGE.get(asset, {}).items() if name in columns}
    lineage = dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=dg.AssetKey(source), column_name=column) for source, column in sources]
            for name, sources in known.items()
        }
    )
    return {"dagster/column_schema": schema} | ({"dagster/column_lineage": lineage} if known else {})
