"""What all assets have in common: partitions, IO manager, owners, code version. One decorator, so that none differs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from ensemble_assets.orchestration.failure_policy import STEP_RETRY
from ensemble_assets.orchestration.partitions import COLLECTIONS, ONE_COLLECTION_PER_RUN

OWNERS = ["team:retrieval"]
GPU_POOL = "gpu"
"""Admission to devices; its one slot comes from dagster.yaml. The lease is what keeps devices exclusive."""


def collection_asset(
    *, group: str, kinds: set[str], code_version: str, pool: str | None = None, deps: list[str] | None = None
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """An asset with one partition per collection that hands on sealed artefacts."""

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
                deps=deps,
                retry_policy=STEP_RETRY,
            )(function)

    return decorate


def collection_checks(
    name: str, *, asset: str, descriptions: Mapping[str, str]
) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
    """Blocking checks of an asset, one result a check and collection, all made by one step.

    Args:
        name: of the step.
        asset: what is checked.
        descriptions: what each check promises, by name.
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
