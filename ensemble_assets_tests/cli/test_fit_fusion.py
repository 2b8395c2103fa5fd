"""``fit-fusion``: weights come from training judgements only, are recorded, and are taken by the runs they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_assets.cli.main import commands
from ensemble_assets.collection.qrels import QRELS
from ensemble_assets.common.errors import InputError, SettingsError
from ensemble_assets.models.registry import model_spec
from ensemble_assets.pipeline.first_stage import fusion_rule
from ensemble_assets.retrieval.fitted_weights import fit_weights, read_weights
from ensemble_assets.retrieval.fusion import RankedList, zscore
from ensemble_assets.settings import resolve
from ensemble_assets.settings.options import Fusion
from ensemble_assets_tests.orchestration.pipeline import TOPICS, Outcome, Pipeline, write_collection

pl = pytest.importorskip("polars")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Six queries, of which the collection's own judgements judge three and ``train.tsv`` the other three."""
    folder = tmp_path_factory.mktemp("fit")
    write_collection(folder / "corpora" / "notes")
    queries = [{"query_id": f"q{n}", "text": f"where is the {TOPICS[n]} number {n}"} for n in range(6)]
    (folder / "corpora" / "notes" / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (folder / "train.tsv").write_text("".join(f"q{n}\tc{n}\t1\n" for n in range(3, 6)))
    outcome = Pipeline(folder).run({"queries.judged_only": False})
    assert outcome.succeeded, outcome.error
    return outcome


@pytest.fixture(autouse=True)
def here(run: Outcome, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = run.bundle.parents[1]
    monkeypatch.chdir(root)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return root


def call(*arguments: str) -> int:
    return int(commands.main(list(arguments), standalone_mode=False) or 0)


def options_of(path: str) -> Fusion:
    return resolve({"fusion.weights_file": path}).settings.fusion


def test_the_recorded_weights_are_those_of_a_direct_fit_on_the_training_queries(run: Outcome, here: Path) -> None:
    assert call("fit-fusion", "output/notes", "--qrels", "train.tsv") == 0
    recorded = read_weights(here / "fusion" / "notes.json", "notes")
    fused = run.artefact("fused_candidates")
    ids = run.artefact("chunks").frame("chunks")["chunk_id"]
    training = pl.DataFrame([(f"q{n}", f"c{n}", 1) for n in range(3, 6)], schema=dict(QRELS), orient="row")
    lists = [RankedList(name, fused.frame(f"run.{name}")) for name in ("dense", "sparse", "lexical")]
    expected = fit_weights(lists, ids, training, zscore())
    assert (recorded.method, recorded.training_queries) == ("zscore", 3)
    assert recorded.lexical_share == expected.weights["lexical"]
    both = expected.weights["dense"] + expected.weights["sparse"]
    assert recorded.dense_weight * both == pytest.approx(expected.weights["dense"])
    assert recorded.quality == pytest.approx(expected.quality, abs=1e-6)


def test_a_run_takes_the_weights_and_its_manifest_says_where_they_come_from(here: Path) -> None:
    assert call("fit-fusion", "notes", "--qrels", "train.tsv", "--method", "minmax", "--output", "w.json") == 0
    content = json.loads((here / "w.json").read_text()) | {"dense_weight": 0.3}
    (here / "w.json").write_text(json.dumps(content))
    outcome = Pipeline(here).run({"queries.judged_only": False, "fusion.weights_file": "w.json"})
    record = outcome.artefact("fused_candidates").record
    assert (record.method, record.dense_share) == ("minmax", 0.3)
    assert outcome.manifest()["fusion_run"]["fitted"]["training_queries"] == 3
    assert len(outcome.manifest()["fusion_run"]["fitted"]["training_qrels_sha256"]) == 64


def test_judgements_that_quality_is_reported_on_are_refused(here: Path) -> None:
    (here / "leak.tsv").write_text("q0\tc0\t1\nq3\tc3\t1\n")
    with pytest.raises(SettingsError, match="1 of its queries are judged by the collection's own qrels"):
        call("fit-fusion", "output/notes", "--qrels", "leak.tsv", "--output", "leak.json")
    assert not (here / "leak.json").exists()


def test_training_queries_that_were_not_run_are_an_error_that_says_how_to_run_them(here: Path) -> None:
    (here / "unknown.tsv").write_text("q77\tc0\t1\n")
    with pytest.raises(SettingsError, match="judged_only=false"):
        call("fit-fusion", "output/notes", "--qrels", "unknown.tsv")


def test_a_weights_file_that_cannot_be_used_is_refused(here: Path) -> None:
    with pytest.raises(SettingsError, match="is not a file"):
        fusion_rule(options_of("absent.json"), "notes")
    (here / "broken.json").write_text('{"version": 1, "dense_weight": 2}')
    with pytest.raises(InputError, match=r"broken\.json"):
        fusion_rule(options_of("broken.json"), "notes")
    call("fit-fusion", "output/notes", "--qrels", "train.tsv", "--output", "mine.json")
    with pytest.raises(SettingsError, match="fitted on collection notes, not other"):
        fusion_rule(options_of("mine.json"), "other")


def test_the_rerankers_share_is_fitted_too_and_taken_by_runs_of_that_reranker(run: Outcome, here: Path) -> None:
    assert call("fit-fusion", "output/notes", "--qrels", "train.tsv", "--output", "share.json") == 0
    recorded = read_weights(here / "share.json", "notes")
    reranker = run.artefact("reranked_candidates").record.model
    assert recorded.reranker == reranker
    content = json.loads((here / "share.json").read_text()) | {"rerank_share": 0.65}
    (here / "share.json").write_text(json.dumps(content))
    options = {"queries.judged_only": False, "fusion.weights_file": "share.json"}
    taken = Pipeline(here).run(options)
    assert taken.artefact("reranked_candidates").record.weight == 0.65
    assert taken.manifest()["rerank_run"]["payload"]["interpolation_weight"] == 0.65
    assert Pipeline(here).run(options | {"rerank.weight": 0.2}).artefact("reranked_candidates").record.weight == 0.2
    (here / "share.json").write_text(json.dumps(content | {"reranker": "another"}))
    other = Pipeline(here).run(options).artefact("reranked_candidates").record
    assert other.weight == model_spec(reranker, "rerank").share


def test_weights_of_an_earlier_version_have_no_share_of_a_reranker(here: Path) -> None:
    assert call("fit-fusion", "output/notes", "--qrels", "train.tsv", "--output", "old.json") == 0
    content = json.loads((here / "old.json").read_text())
    del content["reranker"], content["rerank_share"]
    (here / "old.json").write_text(json.dumps(content))
    assert read_weights(here / "old.json", "notes").reranker == ""
    assert fusion_rule(options_of("old.json"), "notes").fitted["reranker"] == ""
