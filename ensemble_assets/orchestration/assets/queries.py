"""Asset ``queries``: the collection's queries and judgements. The only artefact that holds query text."""

from pathlib import Path

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.collection.queries import load_queries
from ensemble_assets.collection.query_privacy import load_or_create_key
from ensemble_assets.orchestration.asset_frame import collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram
from ensemble_assets.orchestration.resources import Progress, SettingsForm
from ensemble_assets.orchestration.stage_run import finish, stage_run
from ensemble_assets.pipeline.collections import find_collection
from ensemble_assets.settings.default_paths import key_file


@collection_asset(group="inputs", kinds={"polars", "parquet"}, code_version="1")
def queries(
    context: dg.AssetExecutionContext,
    settings: SettingsForm,
    progress: dg.ResourceParam[Progress],
    chunks: Artefact,
) -> dg.MaterializeResult[Artefact]:
    """Queries from a file, or known-item probes derived from the chunks' headings; judgements where there are any."""
    with stage_run(context, settings, progress, "queries") as run:
        options, folder = run.settings.queries, find_collection(run.settings, run.collection).folder
        found = load_queries(
            folder,
            chunks.frame("chunks"),
            load_or_create_key(key_file(run.settings.paths)),
            queries_file=Path(options.file) if options.file else None,
            qrels_file=Path(options.qrels) if options.qrels else None,
            judged_only=options.judged_only,
            derived_limit=options.derived_limit,
            ids_are_public=options.ids_are_public,
        )
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
