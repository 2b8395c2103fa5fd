"""Jobs: the default-on pipeline. What a job materialises is a selection of assets; how they work is elsewhere."""

from __future__ import annotations

import dagster as dg

from ensemble_assets.orchestration.partitions import COLLECTIONS

RETRIEVAL_BUNDLE = "retrieval_bundle"

default_jobs = (
    dg.define_asset_job(
        RETRIEVAL_BUNDLE,
        selection=dg.AssetSelection.groups("inputs", "first_stage", "ranking", "bundles"),
        partitions_def=COLLECTIONS,
        description="Everything, sparse and rerank included, for one collection.",
    ),
)
