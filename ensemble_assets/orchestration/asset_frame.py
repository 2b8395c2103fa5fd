"""Define assets and checks with the properties that all of them share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from ensemble_assets.orchestration.failure_policy import STEP_RETRY
from ensemble_assets.orchestration.partitions import COLLECTIONS, ONE_COLLECTION_PER_RUN

OWNERS = ["team:retrieval"]
GPU_POOL = "gpu"
"""Pool of the steps that use devices; dagster.yaml gives it one slot. The lease keeps devices exclusive."""


def collection_asset(
    *, group: str, kinds: set[str], code_version: str, pool: str | None = None, first: bool = False
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Define an asset with one partition per collection, whose values are sealed artefacts.

    Args:
        group: in the UI.
        kinds: of technology, in the UI.
        code_version: changes when the asset's artefacts change with the same inputs and settings.
        pool: whose slot the step waits for.
        first: whether the step runs before others that are ready too.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetsDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy is beta; chosen knowingly
            return dg.asset(
                partitions_def=COLLECTIONS,
                backfill_policy=ONE_COLLECTION_PER_RUN,
                io_manager_key="artefacts",
                group_name=group,
                kinds=kinds,
                owners=OWNERS,
                code_version=code_version,
                pool=pool,
                op_tags={"dagster/priority": "1"} if first else None,
                retry_policy=STEP_RETRY,
            )(function)

    return decorate


def collection_checks(
    name: str, *, asset: str, descriptions: Mapping[str, str]
) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
    """Define blocking checks of an asset: one step makes one result per check and collection.

    Args:
        name: of the step.
        asset: name of the checked asset.
        descriptions: one sentence per check, by name.
    """

    def decorate(function: Callable[..., Any]) -> dg.AssetChecksDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)  # partitions_def of checks is preview; chosen knowingly
            specs = [
                dg.AssetCheckSpec(check, asset=asset, description=text, blocking=True, partitions_def=COLLECTIONS)
                for check, text in descriptions.items()
            ]
            return dg.multi_asset_check(name=name, specs=specs, can_subset=True)(function)

    return decorate
