"""Asking a bundle: the run's own ranking for the run's own queries, with stages off too, and nothing left on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest

from ensemble_assets.asking.at_once import AtOnceRunner
from ensemble_assets.asking.marking import passage, word_places
from ensemble_assets.asking.searcher import Searcher
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.compute.backends.choice import dense_factory
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoForward
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.settings import resolve
from ensemble_assets_tests.model_zoo.families.multi_vector import MARKS, multi_vector
from ensemble_assets_tests.orchestration.doubles import always, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, fast_factories, write_collection

CANARY = "where is the river of zanzibar-canary-4711"


def searcher(outcome: Outcome, root: Path, **factories: Any) -> Searcher:
    settings = resolve({"paths.cache_dir": str(root / "cache")}).settings
    return Searcher(outcome.bundle, settings, {**fast_factories(), **factories})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rerank.weight": 0.7},
        {"enable_rerank": False},
        {"enable_sparse": False},
        {"enable_sparse": False, "enable_rerank": False},
    ],
)
def test_a_question_gets_the_ranking_of_the_run(pipeline: Pipeline, options: dict[str, Any]) -> None:
    outcome = pipeline.run(options)
    assert outcome.succeeded, outcome.error
    asked = searcher(outcome, pipeline.root)
    queries = outcome.artefact("queries").frame("queries")
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    candidates = outcome.artefact("fused_candidates").frame("candidates")
    for public_id, text in queries.select("public_id", "text").iter_rows():
        wanted = reranked.filter(reranked["public_id"] == public_id).head(10)
        hits = asked.ask(text, top=10)
        assert [hit.chunk_id for hit in hits] == wanted["chunk_id"].to_list()
        assert [hit.score for hit in hits] == pytest.approx(wanted["score"].to_list(), abs=1e-5)
        places = candidates.filter(candidates["public_id"] == public_id)
        first = places.row(places["chunk_id"].to_list().index(hits[0].chunk_id), named=True)
        for name in hits[0].ranks:
            assert hits[0].ranks[name] == first["rank" if name == "fused" else f"{name}_rank"]
    assert asked.notes == []
    assert asked.ask("  ") == []


def test_a_question_in_another_encoding_is_asked_as_a_runs_query_would_be(pipeline: Pipeline) -> None:
    """Python gives bytes of an argument that are not UTF-8 as lone surrogates."""
    asked = searcher(pipeline.run(), pipeline.root)
    assert asked.ask("river \udce9") == asked.ask("river \ufffd") != []
    assert asked.encode("river \udce9").dense == asked.encode("river \ufffd").dense


def test_other_files_of_a_model_are_said_and_a_folder_is_asked_for(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    outcome = Pipeline(tmp_path).run()
    path = outcome.bundle / "processing_summary.json"
    manifest = outcome.manifest()
    model = manifest["dense_run"]["models"][0]
    model["fingerprint"] = "0" * 32
    path.write_text(json.dumps(manifest))
    asked = searcher(outcome, tmp_path)
    assert asked.ask("where is the river")
    (note,) = asked.notes
    assert f"the files of {model['slug']} here are not those that made the bundle's vectors" in note
    model["revision"] = "local"
    path.write_text(json.dumps(manifest))
    with pytest.raises(SettingsError, match=r"was a folder\. Name it as its run did, by --set models\.ensemble=FOLDER"):
        searcher(outcome, tmp_path).ask("where is the river")


@pytest.mark.models
def test_a_colbert_model_that_the_options_name_reranks_a_question_as_in_the_run(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    folder = tmp_path / "my-colbert"
    folder.mkdir()
    multi_vector(prompts=MARKS)(folder)
    doubles = {name: make for name, make in fast_factories().items() if name != "rerank"}
    outcome = Pipeline(tmp_path, Computing(doubles)).run({"models.rerank": str(folder)})
    record = outcome.artefact("reranked_candidates").record
    assert (record.model, record.status, record.weight) == ("my-colbert", "completed", 0.3)
    settings = resolve({"paths.cache_dir": str(tmp_path / "cache"), "models.rerank": str(folder)}).settings
    asked = Searcher(outcome.bundle, settings, doubles)
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    for public_id, text in outcome.artefact("queries").frame("queries").select("public_id", "text").iter_rows():
        wanted = reranked.filter(reranked["public_id"] == public_id).head(10)
        hits = asked.ask(text, top=10)
        assert [hit.rerank_score for hit in hits] == pytest.approx(wanted["rerank_score"].to_list(), abs=0.02)
    asked.prepare()
    assert asked.notes == []
    other = searcher(outcome, tmp_path)
    other.ask("where is the river")
    assert other.notes == ["rerank: the bundle's model my-colbert is not known here. Name it as its run did; left out"]


@pytest.mark.models
@pytest.mark.parametrize("cross_encoder", [True, False])
def test_late_interaction_is_exported_and_asked_as_in_the_run(
    tmp_path: Path, cross_encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    pipeline = Pipeline(tmp_path, Computing({"sparse": sparse_double(), "rerank": rerank_double()}))
    plain = pipeline.run({"encoding.reuse": False})
    vectors = plain.artefact("dense_embeddings").array("chunks.all-minilm-l6-v2").copy()
    outcome = pipeline.run({"rerank.late_interaction": True, "rerank.cross_encoder": cross_encoder})
    assert outcome.succeeded, outcome.error
    dense, record = outcome.artefact("dense_embeddings"), outcome.artefact("reranked_candidates").record
    np.testing.assert_array_equal(dense.array("chunks.all-minilm-l6-v2"), vectors)
    assert dense.record.states["states"] == record.late["states"] == "kept"
    assert list(tmp_path.rglob("tokens-*/shard-*/state.npy"))
    assert (record.late["tokens"], record.late["fallback_reasons"]) == (0, {})
    (lists,) = outcome.bundle.glob("*_rerank.jsonl")
    for line in map(json.loads, lists.read_text().splitlines()):
        assert all(0 <= score <= 1.01 for score in line["late_scores"])
        assert all((score is not None) == cross_encoder for score in line["rerank_scores"])
    manifest = json.loads((outcome.bundle / "processing_summary.json").read_text())
    assert manifest["rerank_run"]["payload"]["late_interaction"]["share"] == 0.5
    asked = searcher(outcome, pipeline.root, dense=dense_factory)
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    for public_id, text in outcome.artefact("queries").frame("queries").select("public_id", "text").iter_rows():
        wanted = reranked.filter(reranked["public_id"] == public_id).head(10)
        hits = asked.ask(text, top=10)
        assert [hit.chunk_id for hit in hits] == wanted["chunk_id"].to_list()
        assert [hit.score for hit in hits] == pytest.approx(wanted["score"].to_list(), abs=0.01)
    assert asked.notes == []
    computed: list[int] = []
    at_once = AtOnceRunner._at_once

    def counted(runner: AtOnceRunner, table: Any, factory: Any, lease: Any) -> Any:
        result = at_once(runner, table, factory, lease)
        if result is not None and factory.spec.slug == "all-minilm-l6-v2":
            computed.append(result.distinct_rows)
        return result

    monkeypatch.setattr(AtOnceRunner, "_at_once", counted)
    assert asked.ask("who mended the lantern")
    assert sum(computed) == 1, "only the question went through the encoder: the run has stored the passages' states"
    hits = asked.ask("who mended the lantern")
    shutil.rmtree(pipeline.root / "output" / ".artifacts" / "notes" / ".working")
    elsewhere = searcher(outcome, pipeline.root, dense=dense_factory)
    elsewhere.ask("where is the river")
    elsewhere.prepare()
    computed.clear()
    again = elsewhere.ask("who mended the lantern")
    assert sum(computed) == 1, "states that were made ahead are as good"
    assert [hit.chunk_id for hit in again] == [hit.chunk_id for hit in hits]
    assert [hit.score for hit in again] == pytest.approx([hit.score for hit in hits], abs=0.01)


def test_later_questions_search_their_lists_at_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = searcher(pipeline.run(), pipeline.root)
    first = asked.ask("where is the river")
    together = Barrier(3, timeout=20)
    search = Searcher._search

    def meeting(self: Searcher, name: str, queries: Any) -> Any:
        together.wait()
        return search(self, name, queries)

    monkeypatch.setattr(Searcher, "_search", meeting)
    assert asked.ask("where is the river") == first
    asked.close()


def test_a_reranker_that_fails_leaves_the_fused_order_and_says_so(pipeline: Pipeline) -> None:
    asked = searcher(pipeline.run(), pipeline.root, rerank=rerank_double(fault=always))
    hits = asked.ask(CANARY)
    assert [hit.ranks["fused"] for hit in hits] == list(range(1, len(hits) + 1))
    assert len(asked.notes) == 1
    assert "canary" not in asked.notes[0]


def test_nothing_of_a_question_is_written(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipeline.root / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(pipeline.root / "tmp"))
    monkeypatch.chdir(pipeline.root)
    outcome = pipeline.run()
    searcher(outcome, pipeline.root).ask(CANARY)
    searcher(outcome, pipeline.root, rerank=rerank_double(fault=always)).ask(CANARY)
    files = [path for path in pipeline.root.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if b"canary" in path.read_bytes() or "canary" in path.name] == []


@pytest.mark.models
@pytest.mark.parametrize("late", [True, False])
def test_real_models_rank_the_queries_of_a_run_as_it_did(tmp_path: Path, late: bool) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    pipeline = Pipeline(tmp_path, Computing())
    outcome = pipeline.run({"rerank.late_interaction": late})
    assert outcome.succeeded, outcome.error
    models = tmp_path / "cache" / "models.json"
    tried = models.read_text()
    asked = Searcher(outcome.bundle, resolve({"paths.cache_dir": str(tmp_path / "cache")}).settings)
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    for public_id, text in outcome.artefact("queries").frame("queries").select("public_id", "text").iter_rows():
        wanted = reranked.filter(reranked["public_id"] == public_id)
        hits = asked.ask(text, top=wanted.height)
        assert [hit.chunk_id for hit in hits] == wanted["chunk_id"].to_list()
        assert [hit.score for hit in hits] == pytest.approx(wanted["score"].to_list(), abs=1e-4)
        scores = [score for score in wanted["rerank_score"] if score is not None]
        orders = outcome.artefact("reranked_candidates").record.weight > 0
        told = [hit.rerank_score for hit in hits if hit.rerank_score is not None]
        assert told == (pytest.approx(scores, abs=1e-3) if orders else []), "what orders nothing is not asked"
        scores = [score for score in wanted["late_score"] if score is not None]
        assert bool(scores) == late
        told = [hit.late_score for hit in hits if hit.late_score is not None]
        assert told == pytest.approx(scores, abs=1e-3)
    asked.close()
    assert models.read_text() == tried, "models were tried again, which takes seconds"


@pytest.mark.models
def test_passages_are_prepared_while_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger embedded reranker then encodes nothing but the next question, also where no run's states are here."""
    write_collection(tmp_path / "corpora" / "notes")
    pipeline = Pipeline(tmp_path, Computing({"dense": fast_factories()["dense"], "sparse": sparse_double()}))
    outcome = pipeline.run({"models.rerank": "minilm-late-interaction", "rerank.depth": 3})
    assert outcome.succeeded, outcome.error
    shutil.rmtree(tmp_path / "output" / ".artifacts" / "notes" / ".working")
    factories = fast_factories()
    del factories["rerank"]
    asked = Searcher(outcome.bundle, resolve({"paths.cache_dir": str(tmp_path / "cache")}).settings, factories)
    encoded: list[int] = []
    encode = OpenVinoForward.__call__

    def counted(self: OpenVinoForward, table: Any, batch: Any) -> Any:
        made = encode(self, table, batch)
        encoded.append(batch.size * ("state" in made))
        return made

    monkeypatch.setattr(OpenVinoForward, "__call__", counted)
    asked.ask("where is the river")
    thread = Thread(target=asked.prepare)
    thread.start()
    during = asked.ask("which engine was seen")
    thread.join()
    assert asked.corpus.chunks.height <= sum(encoded) <= asked.corpus.chunks.height + 3, "and the questions"
    encoded.clear()
    assert asked.ask("who plays the violin")
    assert sum(encoded) == 1
    assert [hit.chunk_id for hit in asked.ask("which engine was seen")] == [hit.chunk_id for hit in during]
    asked.close()
    asked.prepare()  # after the end it does nothing
    assert (sum(encoded), asked.notes) == (1, [])


def test_a_second_question_loads_searches_and_writes_nothing_anew(pipeline: Pipeline) -> None:
    outcome = pipeline.run()
    calls: dict[str, Any] = fast_factories()
    loads: list[str] = []
    for kind, make in calls.items():
        calls[kind] = _counting(make, kind, loads)
    asked = searcher(outcome, pipeline.root, **calls)
    asked.ask("where is the river")
    before, shape = list(loads), {path: path.stat().st_mtime_ns for path in pipeline.root.rglob("*")}
    assert set(before) == {"dense", "sparse", "rerank"}
    (outcome.bundle / "ultimate_embeddings_v4_sparse.jsonl").unlink()
    (outcome.bundle / "ultimate_embeddings_v4_texts.json").unlink()
    assert asked.ask("which engine was seen")
    assert loads == before
    after = {path: path.stat().st_mtime_ns for path in pipeline.root.rglob("*") if path != outcome.bundle}
    assert after == {path: at for path, at in shape.items() if path in after}


def _counting(make: Any, kind: str, loads: list[str]) -> Any:
    def counted(*arguments: Any) -> Any:
        loads.append(kind)
        return make(*arguments)

    return counted


def test_chunks_without_an_id_are_told_apart(tmp_path: Path) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=4)
    path = tmp_path / "corpora" / "notes" / "notes_chunks.json"
    path.write_text(path.read_text().replace('"chunk_id": "c1"', '"chunk_id": "c0"'))
    pipeline = Pipeline(tmp_path)
    asked = searcher(pipeline.run(), tmp_path)
    assert sorted(hit.chunk_id for hit in asked.ask("number")) == ["c0", "c0#2", "c2", "c3"]


@pytest.mark.parametrize(
    ("metadata", "heading", "source"),
    [
        ({"heading": "Fruit", "source": "docs/orchard.md"}, "Fruit", "docs/orchard.md"),
        ({"section_path": ["Garden", "Fruit"]}, "Fruit", "notes_chunks.json"),
    ],
)
def test_a_hit_has_the_heading_and_the_source_of_its_chunk(
    tmp_path: Path, metadata: dict[str, Any], heading: str, source: str
) -> None:
    write_collection(tmp_path / "corpora" / "notes", count=4)
    path = tmp_path / "corpora" / "notes" / "notes_chunks.json"
    path.write_text(json.dumps([{"text": "The orchard sells apples in September.", "metadata": metadata}]))
    asked = searcher(Pipeline(tmp_path).run({"enable_sparse": False, "enable_rerank": False}), tmp_path)
    assert [(hit.heading, hit.source) for hit in asked.ask("apples")] == [(heading, source)]


def test_words_of_the_question_are_marked_in_any_number() -> None:
    text = "Rivers run; the River ends."
    assert [text[start:end] for start, end in word_places(text, "which river ends?")] == ["Rivers", "River", "ends"]
    assert word_places(text, "\udce9 run") == [(7, 10)]  # an argument that is not UTF-8


def test_a_passage_is_the_part_with_most_of_the_question() -> None:
    text = "word " * 200 + "the violin of the orchard " + "other " * 200
    cut = passage(text, "violin orchard", 80)
    assert "violin of the orchard" in cut
    assert len(cut) <= 84
    assert passage("short  text", "x", 80) == "short text"
