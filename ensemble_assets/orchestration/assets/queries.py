"""Asset ``queries``: the collection's queries and judgements. The only artefact that holds query text."""

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.collections import find_collection, queries_of


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="1")
def queries(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Queries from a file, or known-item probes derived from the chunks' headings; judgements where there are any."""
    with stage_run(context, settings, progress, "queries") as run:
        collection = find_collection(run.settings, run.collection)
        found = queries_of(run.settings, collection, chunks.frame("chunks"))
        run.writer.frame("queries", found.queries)
        run.writer.frame("qrels", found.qrels)
        reports = [found.report] + ([found.qrels_report] if found.qrels_report else [])
        facts = {
            "status": "completed",
            "items": found.queries.height,
            "unit": "queries",
            "query_source": found.source,
            "judgements": found.qrels.height,
            "judged": found.judged,
            "report": [report.as_json() for report in reports],
            "warnings": [line for report in reports for line in report.warnings()],
        }
        lengths = found.queries["text"].str.len_chars().to_numpy()
        return finish(
            run, facts, {"query_lengths": histogram(lengths, "Query length", "characters")}, found.queries.height
        )
