"""Asset ``chunks``: the files of a collection as one frame."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram, table
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.stages import read_chunks


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="3")
def chunks(
    context: dg.AssetExecutionContext, settings: SettingsForm, progress: dg.ResourceParam[Progress]
) -> dg.MaterializeResult[Artefact]:
    """The collection's chunks in order: ids, texts, metadata and hashes; a report says what was left out or changed."""
    with stage_step(context, settings, progress, "chunks") as run:
        record = read_chunks(run)
        return finish(run, record, record.items, _pictures)


def _pictures(chunks: Artefact) -> Pictures:
    tokens = chunks.frame("chunks", columns=["token_count"])["token_count"].to_numpy()
    reasons = chunks.record.report["reasons"]
    return {
        "token_counts": histogram(tokens, "Tokens per chunk", "tokens"),
        "report": table([{"reason": code, "count": count} for code, count in reasons.items()]),
    }
