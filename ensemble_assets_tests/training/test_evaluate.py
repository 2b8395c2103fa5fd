"""The evaluation command measures what it is given, with a real model, and refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.collections import read_collection
from ensemble_assets.training.evaluate import main
from ensemble_assets.training.measure import PairScorer, StageScorer
from ensemble_assets_tests.training import toy

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def model() -> Path:
    return locate(MODELS["ensemble-reranker-tiny"]).folder


@pytest.fixture(scope="module")
def scifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_set(tmp_path_factory.mktemp("eval") / "scifact", "test")


@pytest.fixture(scope="module")
def dl19(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy set with candidates in the worst order: the relevant passage is last in every list."""
    folder = toy.write_set(tmp_path_factory.mktemp("eval") / "dl19", "test")
    collection = read_collection(folder, "test")
    (folder / "candidates").mkdir()
    lines, judged = ["query-id\tcorpus-id\trank\tscore"], []
    for query_id, relevant in zip(collection.query_ids, collection.relevant, strict=True):
        (row,) = relevant
        order = [*[other for other in range(20) if other != row][:9], row]
        for rank, passage in enumerate(order, start=1):
            lines.append(f"{query_id}\t{collection.passage_ids[passage]}\t{rank}\t{20 - rank}")
        judged.append(f"{query_id} Q0 {collection.passage_ids[row]} 3")
    (folder / "candidates" / "bm25.tsv").write_text("\n".join(lines) + "\n")
    (folder / "qrels_full_official.txt").write_text("\n".join(judged) + "\n")
    return folder


def command(model: Path, work: Path, output: Path, *more: object) -> int:
    options = ["--model", model, "--work", work, "--output", output, "--threads", 1, *more]
    return main([str(option) for option in options])


def test_all_four_measurements_are_made_and_written(
    model: Path, scifact: Path, dl19: Path, toy_data: Path, work: Path, tmp_path: Path
) -> None:
    output = tmp_path / "figures.json"
    options = ("--scifact", scifact, "--dl19", dl19, "--train", toy_data, "--held-out-share", 0.4)
    assert command(model, work, output, *options, "--aside", toy_data / "covidqa") == 0
    figures = json.loads(output.read_text())
    assert figures["scifact"]["queries"] == 20
    assert figures["scifact"]["nDCG@10"]["dense"] > 0.8
    assert figures["scifact"]["reranked"]["0"] == figures["scifact"]["nDCG@10"]["fused"]
    kept_aside = figures["aside"]["covidqa"]
    assert (kept_aside["passages"], kept_aside["queries"]) == (20, 20)
    assert kept_aside["reranked"]["0"] == kept_aside["nDCG@10"]["fused"] > 0.8
    worst = 1 / np.log2(11)
    assert figures["trec-dl19"]["nDCG@10"]["bm25"] == pytest.approx(worst, abs=1e-4)
    assert figures["trec-dl19"]["reranked"]["1"] > worst + 0.3
    pipeline = figures["trec-dl19"]["pipeline"]
    assert pipeline["nDCG@10"]["fused"] == pipeline["reranked"]["0"] > worst + 0.3
    assert 0 < figures["development"]["sets"]["covidqa"]["queries"] < 20


def test_a_registered_reranker_is_measured_as_the_stage_runs_it(scifact: Path, work: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    options = ["--reranker", "minilm-late-interaction", "--scifact", scifact, "--work", work, "--output", output]
    assert main([str(option) for option in options]) == 0
    figures = json.loads(output.read_text())
    spec = MODELS["minilm-late-interaction"]
    assert (figures["weight"], figures["max_tokens"]) == (spec.share, spec.max_tokens)
    assert figures["model_fingerprint"] == locate(spec).fingerprint
    assert figures["scifact"]["reranked"]["1"] > 0.8


def test_a_stages_scores_are_given_back_in_the_order_of_the_pairs(model: Path) -> None:
    queries = ["lens", "why is honey sticky", "lens"]
    passages = ["Milk curd.", "Honey is a thick solution of sugars.", "Honey is a thick solution of sugars."]
    scorer = StageScorer(MODELS["ensemble-reranker-tiny"], Runtime("fp32", threads=1))
    np.testing.assert_allclose(scorer(queries, passages), PairScorer(model, 160)(queries, passages), atol=1e-4)


def test_a_set_without_candidates_is_refused(
    model: Path, scifact: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(model, work, tmp_path / "figures.json", "--dl19", scifact) == 1
    assert "candidates/bm25.tsv: the file is missing" in capsys.readouterr().err
    assert not (tmp_path / "figures.json").exists()


def test_pair_scores_equal_sentence_transformers(model: Path) -> None:
    collection_queries = ["why is honey sticky", "a ship at the quay", "lens"]
    passages = ["Honey is a thick solution of sugars. " * 60, "The crane lifts cargo off the ship.", "Milk curd."]
    reference = CrossEncoder(str(model), max_length=256, device="cpu", local_files_only=True)
    expected = reference.predict(
        list(zip(collection_queries, passages, strict=True)), activation_fn=lambda logits: logits
    )
    assert np.allclose(PairScorer(model, 256)(collection_queries, passages), expected, atol=1e-4)
