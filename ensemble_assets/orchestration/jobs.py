"""Jobs: the default-on pipeline. What a job materialises is a selection of assets; how they work is elsewhere."""

from __future__ import annotations

import dagster as dg

RETRIEVAL_BUNDLE = "retrieval_bundle"

default_jobs = (
    dg.define_asset_job(
        RETRIEVAL_BUNDLE,
        selection=dg.AssetSelection.groups("inputs", "first_stage", "ranking", "quality", "bundles"),
        description="Everything, sparse and rerank included, for one collection.",
    ),
)
