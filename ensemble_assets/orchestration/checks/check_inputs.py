"""What the gates look at, gathered for one collection: its artefacts, its bundle, and everything the run wrote."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import dagster as dg
import polars as pl

from ensemble_assets.artefacts.artefact import INDEX_NAME, Artefact
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stage_limits import StageCost
from ensemble_assets.export.checks.v40_records import Original
from ensemble_assets.export.checks.verdicts import circumstances, holding
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.query_leaks.searched_places import Place, file_place, text_place
from ensemble_assets.export.read.bundle_reader import open_bundle, read_object
from ensemble_assets.export.suite import Evidence, public_names
from ensemble_assets.export.write.names import collection_folder
from ensemble_assets.pipeline.bundle_inputs import Upstream, bundle_inputs, limits_of
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.run_report import report_path
from ensemble_assets.pipeline.telemetry_of_run import JOURNALS
from ensemble_assets.settings import Settings

_ASSETS = {
    "chunks": "chunks",
    "queries": "queries",
    "dense": "dense_embeddings",
    "sparse": "sparse_vectors",
    "fused": "fused_candidates",
    "reranked": "reranked_candidates",
}
_COSTED = {"dense": "dense", "sparse": "sparse", "fusion": "fused", "rerank": "reranked"}
_HOLDS_TEXT = {"chunks", "queries"}
_WORD_BREAK = "\n_____\n"


def run_evidence(context: dg.AssetCheckExecutionContext, settings: Settings, scratch: Path) -> Evidence:
    """Everything about the collection of this step.

    Raises:
        ArtefactError: if an asset was never materialised or is damaged, or there is no bundle.
    """
    collection = context.partition_key
    store = open_store(settings)
    artefacts = {field: store.load(collection, asset) for field, asset in _ASSETS.items()}
    upstream = Upstream(**artefacts)
    bundle = open_bundle(Path(settings.paths.output_dir) / collection_folder(collection))
    if bundle.names.prefix != settings.export.prefix:
        raise ArtefactError(
            f"{bundle.folder.name}: the bundle's files begin with {bundle.names.prefix!r}, export.prefix is "
            f"{settings.export.prefix!r}. Export the bundle again"
        )
    clock = str(read_object(bundle.path("stats.json")).get("export_timestamp"))
    inputs = bundle_inputs(upstream, collection, settings, clock)
    exported = store.load(collection, "export_bundle").facts
    limits = limits_of(settings)
    known: dict[str, GateResult] = {}
    if exported.get("run_id") == context.run.run_id:  # else there is nothing to hash the bundle for
        now = circumstances(bundle.folder, context.run.run_id, upstream.versions, limits)
        known = holding(exported.get("verdicts"), now)
    runs = {context.run.run_id, *(str(artefact.facts["run_id"]) for artefact in artefacts.values())}
    return Evidence(
        original=Original(bundle, scratch, inputs),
        limits=limits,
        costs={
            **{stage: _cost(artefacts[field].facts) for stage, field in _COSTED.items()},
            "export": _cost(exported),
        },
        queries=run_queries(upstream),
        places=lambda: _places(context.instance, bundle.folder, artefacts, runs),
        public=lambda: (*public_names(inputs), *upstream.chunks.frame("chunks", columns=["chunk_id"])["chunk_id"]),
        known=known,
    )


def run_queries(upstream: Upstream) -> tuple[Query, ...]:
    """The run's queries, and their ids where those are not public, to look for; labelled with their public ids."""
    frame = upstream.queries.frame("queries", columns=["public_id", "text", "query_id"])
    hidden = frame.filter(frame["query_id"] != frame["public_id"])
    labelled = [*frame.select("public_id", "text").iter_rows(), *hidden.select("public_id", "query_id").iter_rows()]
    return tuple(Query(label, text) for label, text in labelled)


def _cost(facts: Mapping[str, object]) -> StageCost:
    seconds, peak = facts.get("wall_seconds", 0.0), facts.get("peak_bytes", 0)
    return StageCost(
        float(seconds) if isinstance(seconds, (int, float)) else 0.0,
        int(peak) if isinstance(peak, (int, float)) else 0,
        str(facts.get("device", "none")),
    )


def _places(
    instance: dg.DagsterInstance, bundle: Path, artefacts: Mapping[str, Artefact], runs: Iterable[str]
) -> Iterator[Place]:
    """What the runs wrote beside the bundle, as far as it is still there."""
    journals = bundle.parent / ".artifacts" / JOURNALS
    for path in sorted(journals.glob("*")) if journals.is_dir() else ():
        if path.is_file():
            yield file_place(path, f"telemetry {path.name}")
    report = report_path(bundle)
    if report.is_file():
        yield text_place(report.name, [html.unescape(report.read_text(encoding="utf-8"))])
    for field, artefact in artefacts.items():
        yield file_place(artefact.folder / INDEX_NAME, f"facts of {_ASSETS[field]}")
        if field not in _HOLDS_TEXT:
            yield from _frame_places(_ASSETS[field], artefact)
    for run in sorted(runs):
        yield from run_places(instance, run)


def _frame_places(asset: str, artefact: Artefact) -> Iterator[Place]:
    for file in sorted(artefact.index["files"]):
        name = file.removesuffix(".parquet")
        if name != file:
            schema = artefact.scan(name).collect_schema()
            strings = [column for column, dtype in schema.items() if dtype == pl.String]
            frame = artefact.frame(name, columns=strings) if strings else pl.DataFrame()
            values = [value for column in strings for value in frame[column].unique().drop_nulls().to_list()]
            yield text_place(f"{name} of {asset}", [_WORD_BREAK.join([*schema, *values])])


def run_places(instance: dg.DagsterInstance, run_id: str) -> Iterator[Place]:
    """A run as Dagster stores it: its record, its events so far, and the captured output of its steps."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return
    short = run_id[:8]
    yield text_place(f"run {short} in Dagster's run storage", [repr(run.run_config), repr(run.tags)])
    entries = list(instance.all_logs(run_id))
    yield text_place(f"run {short} in Dagster's event storage", map(dg.serialize_value, entries))
    yield text_place(f"run {short} in Dagster's compute logs", _captured(instance, entries))


def _captured(instance: dg.DagsterInstance, entries: list[dg.EventLogEntry]) -> list[str]:
    texts: list[str] = []
    for entry in entries:
        event = entry.dagster_event
        if event is not None and event.event_type == dg.DagsterEventType.LOGS_CAPTURED:
            data = event.logs_captured_data
            key = [entry.run_id, "compute_logs", data.file_key]
            captured = instance.compute_log_manager.get_log_data(key)
            texts += [part.decode("utf-8", "replace") for part in (captured.stdout, captured.stderr) if part]
    return texts
