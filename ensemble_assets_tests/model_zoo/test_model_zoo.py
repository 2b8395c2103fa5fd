"""Layouts that the library loads give the same here, or are refused: some in every run, all at night."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ensemble_assets_tests.model_zoo.compare import FP32, Comparison, compare
from ensemble_assets_tests.model_zoo.layouts import BY_KEY, LAYOUTS
from ensemble_assets_tests.model_zoo.product import Outputs
from ensemble_assets_tests.model_zoo.reference import Truth
from ensemble_assets_tests.model_zoo.registered_layouts import REGISTERED
from ensemble_assets_tests.model_zoo.runs import rows_of, run_layout, run_together
from ensemble_assets_tests.model_zoo.texts import QUERIES, chunk_texts

TOGETHER = (
    ("dense/msmarco-dot", "sparse/splade-bert", "rerank/ms-marco-minilm"),
    (
        *("dense/bge-m3", "dense/paraphrase-minilm", "dense/do-lower-case", "dense/e5"),
        *("sparse/splade-sum", "rerank/prompted"),
    ),
    (
        *("dense/qwen3-embedding", "dense/modernbert-embed", "dense/embeddinggemma"),
        *("sparse/opensearch-doc-v3", "rerank/qwen3-reranker"),
    ),
    ("dense/pytorch-bin", "dense/router-static-query", "dense/matryoshka", "sparse/csr", "rerank/colbert-pylate"),
    ("dense/static-root", "rerank/two-labels"),  # their run fails, so each runs alone
)
"""One layout for each cause of a difference that was ever seen. Those of a row share a run, which saves its start."""

IN_EVERY_RUN = [key for row in TOGETHER for key in row]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the hub cache and the machine's caches, shared by all layouts."""
    return tmp_path_factory.mktemp("zoo")


def _wrong(comparisons: Sequence[Comparison]) -> list[str]:
    return [f"{each.key} {each.verdict}: {each.detail}" for each in comparisons if not each.as_expected]


@pytest.mark.models
@pytest.mark.parametrize("keys", TOGETHER, ids=lambda keys: keys[0])
def test_the_product_gives_what_the_library_gives(keys: Sequence[str], root: Path) -> None:
    assert not _wrong(run_together([BY_KEY[key] for key in keys], root))


@pytest.mark.nightly
@pytest.mark.parametrize("key", [layout.key for layout in LAYOUTS])
def test_every_layout_alone_gives_what_the_library_gives(key: str, root: Path) -> None:
    assert not _wrong([run_layout(BY_KEY[key], root)])


@pytest.mark.nightly
@pytest.mark.timeout(3600)  # 336 pairs through a network that is 1,024 wide, here and in the library
def test_all_five_models_of_the_large_profile_give_what_the_library_gives_in_one_run(root: Path) -> None:
    comparisons = run_together(REGISTERED, root, profile="kaggle-t4x2")
    print(*(f"{each.key}: {each.detail}" for each in comparisons), sep="\n")
    assert [each.verdict for each in comparisons] == ["equal"] * 5, comparisons


@pytest.mark.nightly
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("key", [layout.key for layout in LAYOUTS if layout.expected == "equal"])
def test_half_precision_on_a_gpu_stays_within_its_bounds(key: str, precision: str, root: Path) -> None:
    assert not _wrong([run_layout(BY_KEY[key], root, precision)])


def test_the_zoo_is_as_large_as_it_says_and_its_names_are_its_own() -> None:
    assert len({layout.hub_id for layout in LAYOUTS}) == len(LAYOUTS) >= 117
    assert (len(set(chunk_texts())), len(set(QUERIES))) == (42, 8)
    assert len(set(IN_EVERY_RUN)) == 21
    assert set(IN_EVERY_RUN) <= BY_KEY.keys()


def test_layouts_that_share_runs_are_each_in_one_of_them() -> None:
    rows = rows_of(LAYOUTS)
    assert sorted(layout.key for row in rows for layout in row) == sorted(BY_KEY)
    for row in rows:
        kinds = [layout.kind for layout in row]
        assert max(kinds.count("sparse"), kinds.count("rerank")) <= 1
        assert kinds.count("dense") <= 4
        assert len(row) == 1 or not any(x.entry or x.local or x.ranking or x.expected != "equal" for x in row)


def _rows(seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(5, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_turned_vector_another_width_and_a_lost_row_are_wrong() -> None:
    layout, chunks, queries = BY_KEY["dense/bert-mean"], _rows(1), _rows(2)
    truth = Truth(3.0 * chunks, queries, [[0]] * 5)
    outputs = Outputs([], [], chunks, queries, ranked=[[0]] * 5)
    assert compare(layout, outputs, truth).verdict == "equal"
    turned = chunks.copy()
    turned[3] += 0.01
    assert compare(layout, replace(outputs, chunk_vectors=turned), truth).verdict == "wrong"
    assert compare(layout, replace(outputs, query_vectors=queries[:, :8]), truth).verdict == "wrong"
    lost = chunks * np.array([1, 1, 0, 1, 1], np.float32)[:, None]
    assert compare(layout, replace(outputs, chunk_vectors=lost), truth).verdict == "wrong"
    assert compare(layout, replace(outputs, chunk_vectors=chunks * np.nan), truth).verdict == "wrong"
    ranked = replace(outputs, ranked=[[1]] * 5)
    assert compare(replace(layout, ranking=True), ranked, truth).verdict == "wrong"


def test_sparse_weights_and_scores_are_held_to_their_tolerances() -> None:
    sparse, weights = BY_KEY["sparse/splade-bert"], np.abs(_rows(3))
    near, far = weights + FP32.weight / 2, weights + FP32.weight * 2
    truth = Truth(weights, weights)
    assert compare(sparse, Outputs([], [], near, weights), truth).verdict == "equal"
    assert compare(sparse, Outputs([], [], weights, far), truth).verdict == "wrong"
    rerank, logits = BY_KEY["rerank/bert-sigmoid"], _rows(4)
    scores = 1 / (1 + np.exp(-logits))
    judged = Truth(scores=lambda: scores, logits=logits)
    assert compare(rerank, Outputs([], [], scores=logits), judged).verdict == "equal"
    assert compare(rerank, Outputs([], [], scores=scores), judged).verdict == "equal"
    assert compare(rerank, Outputs([], [], scores=logits + 1e-4), judged).verdict == "wrong"
    rounded = Outputs([], [], scores=logits + 1e-4)
    assert compare(rerank, rounded, replace(judged, noise=lambda: 2e-4)).verdict == "equal"
    unasked = replace(judged, noise=lambda: pytest.fail("takes as long as the rest together"))
    assert compare(rerank, Outputs([], [], scores=logits), unasked).verdict == "equal"
    unscored = logits.copy()
    unscored[0, 0] = np.nan
    assert compare(rerank, Outputs([], [], scores=unscored), judged).verdict == "wrong"


def test_a_refusal_says_why_and_a_recorded_fallback_is_none() -> None:
    layout, truth = BY_KEY["rerank/two-labels"], Truth()
    refused = compare(layout, Outputs([], [], message="two labels. Choose another model", exit_code=1), truth)
    assert (refused.verdict, refused.as_expected) == ("refused", True)
    fell_back = compare(layout, Outputs([], [], message="fell back: {'model_unavailable': 8}"), truth)
    assert (fell_back.verdict, fell_back.as_expected) == ("fell back", False)
    crashed = compare(layout, Outputs([], [], message="unexpected TypeError", exit_code=1), truth)
    assert (crashed.verdict, crashed.as_expected) == ("crashed", False)
