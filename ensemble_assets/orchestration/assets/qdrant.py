"""Asset ``qdrant_collection``: the bundle in Qdrant, where that is configured."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import finish, stage_step
from ensemble_assets.pipeline.bundle_export import upload_to_qdrant


@collection_asset(group="serving", kinds={"qdrant"}, code_version="1")
def qdrant_collection(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    export_bundle: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """All points of the bundle, searched once each way; where it is off, an empty artefact marked so."""
    with stage_step(context, settings, progress, "qdrant") as run:
        record = upload_to_qdrant(run, export_bundle)
        return finish(run, record, record.items)
