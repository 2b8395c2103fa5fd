"""Define assets and checks with the properties that all of them share."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact, require_one_origin
from ensemble_assets.orchestration.failure_policy import STEP_RETRY
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.stage_step import stage_step

Materialised: TypeAlias = dg.MaterializeResult[Artefact]

OWNERS = ["team:retrieval"]
DEVICE_POOL = "device"
"""Pool of the steps that run models; dagster.yaml gives it one slot. The lease keeps devices exclusive."""


def collection_asset(
    stage: str, *, group: str, kinds: set[str], code_version: str, pool: str | None = None, first: bool = False
) -> Callable[[Callable[..., Materialised]], dg.AssetsDefinition]:
    """Define an asset with one partition per collection, whose values are sealed artefacts.

    The function gets the open stage as ``run``, ``computing`` if it has such a parameter, and the artefacts that its
    other parameters name. ``code_version`` changes when the artefacts change with the same inputs and settings. The
    step waits for a slot of ``pool``; with ``first`` it runs before others that are ready too.
    """

    def decorate(function: Callable[..., Materialised]) -> dg.AssetsDefinition:
        parameters = set(inspect.signature(function).parameters)
        shared = parameters & {"computing"}

        def step(context: dg.AssetExecutionContext, **artefacts: Artefact) -> Materialised:
            resources = context.resources
            with stage_step(context, resources.settings, resources.progress, stage) as run:
                require_one_origin(artefacts)
                run.inputs = artefacts
                return function(run, **{name: getattr(resources, name) for name in shared}, **artefacts)

        return dg.asset(
            name=function.__name__,
            description=inspect.getdoc(function),
            ins={name: dg.AssetIn() for name in parameters - shared - {"run"}},
            required_resource_keys={"settings", "progress", *shared},
            partitions_def=COLLECTIONS,
            io_manager_key="artefacts",
            group_name=group,
            kinds=kinds,
            owners=OWNERS,
            code_version=code_version,
            pool=pool,
            op_tags={"dagster/priority": "1"} if first else None,
            retry_policy=STEP_RETRY,
        )(step)

    return decorate


def collection_checks(
    name: str, *, asset: str, descriptions: Mapping[str, str]
) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
    """Define blocking checks of an asset, from one sentence by name: one step makes one result per check."""

    def decorate(function: Callable[..., Any]) -> dg.AssetChecksDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)  # partitions_def of checks is preview; chosen knowingly
            specs = [
                dg.AssetCheckSpec(check, asset=asset, description=text, blocking=True, partitions_def=COLLECTIONS)
                for check, text in descriptions.items()
            ]
            return dg.multi_asset_check(name=name, specs=specs, can_subset=True)(function)

    return decorate
