"""Make each collection a dynamic partition that all assets share."""

from __future__ import annotations

import dagster as dg

COLLECTIONS = dg.DynamicPartitionsDefinition(name="collection")
"""One partition key per collection folder."""

ONE_COLLECTION_PER_RUN = dg.BackfillPolicy.multi_run(max_partitions_per_run=1)
"""A broken collection fails its own run only, and checks keep their partition."""
