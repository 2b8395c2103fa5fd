"""Assets ``chunks`` and ``queries``: the files of a collection as frames."""

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.orchestration.asset_frame import Materialised, collection_asset
from ensemble_assets.orchestration.dagster_metadata import histogram, table
from ensemble_assets.orchestration.stage_step import Pictures, finish
from ensemble_assets.pipeline.stage_run import StageRun
from ensemble_assets.pipeline.stages import read_chunks, read_queries


@collection_asset("chunks", group="inputs", kinds={"polars", "parquet"}, code_version="4")
def chunks(run: StageRun) -> Materialised:
    """The collection's chunks as its files have them, in order. A report counts records left out or changed."""
    record = read_chunks(run)
    return finish(run, record, record.items, _draw_chunks)


def _draw_chunks(chunks: Artefact) -> Pictures:
    tokens = chunks.frame("chunks", columns=["token_count"])["token_count"].to_numpy()
    reasons = chunks.record.report["reasons"]
    return {
        "token_counts": histogram(tokens, "Tokens per chunk", "tokens"),
        "report": table([{"reason": code, "count": count} for code, count in reasons.items()]),
    }


@collection_asset("queries", group="inputs", kinds={"polars", "parquet"}, code_version="1")
def queries(run: StageRun, chunks: Artefact) -> Materialised:
    """Queries from a file, or probes derived from the chunks' headings; judgements where there are any.

    Only this artefact holds query text.
    """
    record = read_queries(run, chunks)
    return finish(run, record, record.items, _draw_queries)


def _draw_queries(queries: Artefact) -> Pictures:
    lengths = queries.frame("queries", columns=["text"])["text"].str.len_chars().to_numpy()
    return {"query_lengths": histogram(lengths, "Query length", "characters")}
