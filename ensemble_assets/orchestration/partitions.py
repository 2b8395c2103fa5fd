"""Make each collection a dynamic partition that all assets share."""

from __future__ import annotations

import dagster as dg

COLLECTIONS = dg.DynamicPartitionsDefinition(name="collection")
"""One partition key per collection folder.

Assets have no backfill policy. So Dagster makes one run per collection with the tag ``dagster/partition``, which the
limit of one run per collection, the checks and the nightly schedule go by; with a policy it tags ranges only.
"""
