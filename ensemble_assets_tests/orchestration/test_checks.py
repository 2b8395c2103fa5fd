"""The gates as asset checks: in the job, by partition, blocking, over everything that a run wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.build import build_definitions
from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.query_leaks.gate import no_raw_queries
from ensemble_assets.export.query_leaks.query_forms import Query, canonical
from ensemble_assets.export.suite import DESCRIPTIONS, GATES
from ensemble_assets.orchestration.checks import ALL_CHECKS, bundle, check_inputs
from ensemble_assets.orchestration.checks.check_inputs import _is_one_word, bundle_results
from ensemble_assets.orchestration.checks.quality import QUALITY_DESCRIPTIONS
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.settings import Settings
from ensemble_assets_tests.export import reference
from ensemble_assets_tests.export.bundles import PREFIX, read_chunks
from ensemble_assets_tests.export.checks.schemas import problems
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline

CANARY = "where is the river number 0"


def evaluations(outcome: Outcome) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in outcome.result.get_asset_check_evaluations()}


def test_every_gate_is_a_blocking_check_of_the_job() -> None:
    specs = [spec for check in ALL_CHECKS for spec in check.check_specs]
    assert {spec.name for spec in specs} == {*GATES, *QUALITY_DESCRIPTIONS}
    assert set(GATES) == set(DESCRIPTIONS)
    assert all(spec.blocking and spec.partitions_def is not None for spec in specs)
    job = build_definitions().resolve_job_def(RETRIEVAL_BUNDLE)
    assert {"bundle_gates", "quality_gates"} <= set(job.graph.node_names())


def figures_of(check: dg.AssetCheckEvaluation) -> dict[str, str]:
    """The table of a check's figures, by name."""
    return {row.data["figure"]: row.data["value"] for row in check.metadata["figures"].records}


def test_a_run_passes_every_gate_for_its_partition_and_its_bundle_fits_the_schemas(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    checks = evaluations(outcome)
    assert set(checks) == {*GATES, *QUALITY_DESCRIPTIONS}
    assert [name for name, check in checks.items() if not check.passed] == []
    assert {check.partition for check in checks.values()} == {"notes"}
    assert figures_of(checks["no_raw_queries"])["queries"] == "3"
    numbers = [name for check in checks.values() for name, value in check.metadata.items()
               if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))]  # fmt: skip
    assert numbers == [], "Dagster would join the numbers of all collections in one plot"
    assert problems(outcome.bundle, "v4.1") == []
    (exported,) = (event for event in outcome.result.get_asset_materialization_events()
                   if event.asset_key == dg.AssetKey("export_bundle"))  # fmt: skip
    files = sum(path.stat().st_size for path in outcome.bundle.iterdir())
    shown = exported.materialization.metadata["dagster/size_bytes"].value
    assert shown >= files > 0, "Dagster's page says as much under Storage"

    journals = pipeline.root / "output" / ".artifacts" / "telemetry"
    assert list(journals.iterdir()), "the journal was there to be searched"
    (journals / "telemetry-planted.jsonl").write_text(json.dumps({"query": CANARY.upper()}), encoding="utf-8")
    broken = pipeline.run()
    assert not broken.succeeded, "a failed check of severity ERROR fails the run"
    assert "no_raw_queries" in evaluations(broken), broken.error
    leak = evaluations(broken)["no_raw_queries"]
    assert (leak.passed, leak.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "telemetry-planted.jsonl: holds the text of query q0" in str(leak.description)
    assert CANARY not in str(leak.metadata).casefold()


def test_queries_and_headings_that_name_the_models_or_their_words_pass(pipeline: Pipeline) -> None:
    folder = pipeline.root / "corpora" / "notes"
    vocabulary = ["telecommunications", "interdisciplinary", "人", "export_bundle_of_words"]
    asked = ["sentence transformers all-MiniLM-L6-v2", "points per request", "create the collection", *vocabulary]
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"query_id": f"q{n}", "text": text}) + "\n" for n, text in enumerate(asked))
    )
    (folder / "qrels.tsv").unlink()
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    gate = evaluations(outcome)["no_raw_queries"]
    assert (gate.passed, figures_of(gate)["queries"]) == (True, str(len(asked)))


def test_a_vocabulary_is_a_word_list_and_no_place_for_a_query_of_several_words(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    artefact = outcome.artefact("sparse_vectors")
    words = ["telecommunications", "人", "who mended the lamp"]
    path = artefact.folder / "vocabulary.parquet"
    pl.DataFrame({"token": words}).write_parquet(path)
    places = list(check_inputs._frame_places("sparse_vectors", artefact))
    for text, passes in ((words[0], True), (words[1], True), (words[2], False)):
        assert no_raw_queries([Query("q1", text)], places).passed is passes


def test_with_both_stages_off_the_bundle_is_byte_identical_and_passes(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False})
    checks = evaluations(outcome)
    assert all(check.passed for check in checks.values())
    expected = v40_files(pipeline.root / "corpora" / "notes", outcome.bundle)
    assert len(expected) == 4
    assert {name: (outcome.bundle / name).read_bytes() for name in expected} == expected


def v40_files(folder: Path, bundle: Path) -> dict[str, bytes]:
    """The records that the reference makes of a collection and the bundle's vectors, by file name."""
    with (bundle / f"{PREFIX}_qdrant.jsonl").open(encoding="utf-8") as lines:
        payload = json.loads(lines.readline())["payload"]
    stats = json.loads((bundle / f"{PREFIX}_stats.json").read_text(encoding="utf-8"))
    info, limit = payload["model_info"], stats["model_config"]["max_tokens"]
    models = [(info["name"], info["hf_model_id"], limit, np.load(bundle / f"{PREFIX}_embeddings.npy"))]
    facts = {"collection": "notes", "priority": 0.5, "clock": stats["export_timestamp"]}
    chunks = [(chunk.text, chunk.metadata, chunk.source) for chunk in read_chunks(folder)]
    made = reference.files(chunks, models, facts)
    return {name: content for name, content in made.items() if not name.endswith("_stats.json")}


def test_checks_report_the_exporters_results_unless_the_bundle_changed_since(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampering(collection: str, settings: Settings) -> Iterator[GateResult]:
        [points] = (pipeline.root / "output" / "notes").glob("*_qdrant.jsonl")
        points.write_bytes(points.read_bytes().replace(b'"id": 3', b'"id": 4', 1))
        return bundle_results(collection, settings)

    monkeypatch.setattr(bundle, "bundle_results", tampering)
    outcome = pipeline.run()
    assert not outcome.succeeded
    checks = evaluations(outcome)
    for name in ("bundle_format", "row_alignment", "vectors_finite_and_unit", "sparse_coverage"):
        assert not checks[name].passed
        assert "changed since the export" in str(checks[name].description)
    assert checks["memory_ceiling"].passed


@pytest.mark.parametrize("enabled", [True, False])
def test_the_bundle_goes_to_qdrant_where_that_is_configured(pipeline: Pipeline, enabled: bool) -> None:
    qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is an optional extra")
    from ensemble_assets.orchestration.partitions import COLLECTIONS
    from ensemble_assets.orchestration.resources import settings_run_config
    from ensemble_assets.pipeline.from_settings import open_store
    from ensemble_assets.settings import flatten, resolve

    outcome = pipeline.run()
    overrides = {"paths.output_dir": str(pipeline.root / "output"), "qdrant.enabled": enabled}
    settings = resolve(overrides).settings
    typed = flatten(settings)
    definitions = build_definitions(computing=pipeline.computing)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(COLLECTIONS.name), ["notes"])
        result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            partition_key="notes",
            instance=instance,
            asset_selection=[dg.AssetKey("qdrant_collection")],
            run_config=settings_run_config({key: typed[key] for key in overrides}, {}),
        )
    assert result.success
    record = open_store(settings).load("notes", "qdrant_collection").record
    storage = pipeline.root / "output" / ".qdrant"
    assert record.status == ("completed" if enabled else "feature_disabled")
    assert storage.exists() is enabled
    if enabled:
        client = qdrant_client.QdrantClient(path=str(storage))
        assert client.count(record.collection_in_qdrant).count == len(outcome.points()) == record.items
        client.close()


@given(st.text(st.sampled_from("ab1#½ﬁ_- .é"), max_size=6) | st.text(max_size=6))
def test_what_counts_as_one_word_of_a_vocabulary_is_one_word_to_the_search_for_queries(value: str) -> None:
    if _is_one_word(value):
        assert len(canonical(value).split()) == 1
