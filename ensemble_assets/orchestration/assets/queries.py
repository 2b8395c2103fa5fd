"""Asset ``queries``: the collection's queries and judgements. Only this artefact holds query text."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_step import Pictures, finish, stage_step
from ensemble_assets.pipeline.stages import read_queries


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="1")
def queries(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Queries from a file, or probes derived from the chunks' headings; judgements where there are any."""
    with stage_step(context, settings, progress, "queries") as run:
        record = read_queries(run, chunks)
        return finish(run, record, record.items, _pictures)


def _pictures(queries: Artefact) -> Pictures:
    lengths = queries.frame("queries", columns=["text"])["text"].str.len_chars().to_numpy()
    return {"query_lengths": histogram(lengths, "Query length", "characters")}
